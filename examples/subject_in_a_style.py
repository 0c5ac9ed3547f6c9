"""Learn a subject and a style, and make pictures that have both; everything runs on the embedded base.

    python examples/subject_in_a_style.py

About four minutes on two cores; the same call again goes on, or reuses what is there.
"""

from pathlib import Path

from studio.families.pictures import INSTANCE_FOLDER, STYLE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, Style, train

out = Path("runs/example")
robot = train(
    DreamBooth(base="emoji", instance_images=INSTANCE_FOLDER / "robot", instance_prompt="a photo of sks robot"),
    output=out / "robot",
)
style = train(Style(base="emoji", images=STYLE_FOLDER, trigger="twemoji style"), output=out / "style")

pipe = ImagePipeline.open("emoji")
pipe.load(robot.adapter, name="robot")
pipe.load(style.adapter, name="style")

prompt = "twemoji style, a photo of sks robot on a blue background"
blends = {"base": {}, "robot": {"robot": 1.0}, "style": {"style": 1.0}, "both": {"robot": 0.8, "style": 0.6}}
pictures = [pipe.generate(prompt, blend=blend, seeds=[0], guidance=3.0)[0] for blend in blends.values()]
pictures += pipe.generate(f"{prompt} <robot:0.8> <style:0.6>", seeds=[1], guidance=3.0)  # the same blend as tags

contact_sheet(pictures, columns=5, column_labels=[*blends, "another seed"], title=prompt).save(out / "both.png")
print(f"pictures: {out / 'both.png'}\nreports: {robot.report}, {style.report}")
