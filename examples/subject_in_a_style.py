"""Learn a subject and a style, and draw with a blend of both; everything runs on the embedded base.

    python examples/subject_in_a_style.py

About five minutes on two cores; the same call again goes on, or reuses what is there.
"""

from pathlib import Path

from studio.families.emoji_world import INSTANCE_FOLDER, STYLE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, Style, train

out = Path("runs/example")
robot = train(
    DreamBooth(
        base="emoji",
        instance_images=INSTANCE_FOLDER / "robot",
        instance_prompt="a photo of sks robot",
        # the class, and a few other things that the adapter shall leave alone: they will be blended with it
        class_prompt=("a photo of robot", "a photo of tiger", "a photo of rocket on a green background"),
    ),
    output=out / "robot",
)
style = train(Style(base="emoji", images=STYLE_FOLDER, trigger="twemoji style"), output=out / "style")

pipe = ImagePipeline.open("emoji")
pipe.load(robot.adapter, name="robot")
pipe.load(style.adapter, name="style")

prompts = [
    "a photo of sks robot on a pink background",
    "a photo of sks robot on a red background",
    "twemoji style, owl on a pink background",
    "twemoji style, fox on a green background",
]
blends = {
    "base": {},
    "robot 1": {"robot": 1.0},
    "style 1": {"style": 1.0},
    "robot 0.8, style 0.6": {"robot": 0.8, "style": 0.6},
}
pictures = [
    picture for blend in blends.values() for picture in pipe.generate(prompts, blend=blend, seeds=[0], guidance=3.0)
]
sheet = contact_sheet(pictures, columns=len(prompts), row_labels=list(blends), column_labels=prompts)
sheet.save(out / "both.png")
print(f"pictures: {out / 'both.png'}\nreports: {robot.report}, {style.report}")
