"""What is wrong with a folder of pictures, before it costs a night of training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from studio.datasets.alike import same_pictures
from studio.datasets.captions import Encoding
from studio.datasets.findings import CheckReport, Problem, Severity, count
from studio.datasets.folder import ImageFolder, ImageItem, scan_folder
from studio.datasets.trigger import Trigger, subject_words
from studio.errors import BadConfig, DoesNotFit
from studio.shown import shown

__all__ = ["check_folder"]

FEW = 3  # pictures; with fewer, the background is learned with the subject
LONG_CAPTION = 60  # words; a CLIP text encoder reads 75 tokens, which are about that many

Fits = Callable[[str], None]
Keeps = Callable[[Iterable[ImageItem]], str | None]
CUT = 0.3  # share of a picture that a crop may cut off without a remark
STRETCHED = 4.0  # longer side over shorter side
OFTEN = 200  # repeats above which the number in front of a folder's name is rather a year


def check_folder(
    folder: str | Path,
    *,
    instance_prompt: str | None = None,
    trigger: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    encoding: Encoding = "utf-8",
    fits: Fits | None = None,
    keeps: Keeps | None = None,
) -> CheckReport:
    """Looks for everything in a folder of pictures that would spoil a training, and trains nothing.

    Args:
        folder: where the pictures are.
        instance_prompt: the prompt that a subject will be trained with, such as "a photo of sks dog".
        trigger: the phrase that a style will be trained with, such as "ink style".
        resolution: the size to train at, in pixels: a side, or width and height.
        encoding: what caption files without a mark are read as.
        fits: raises ``DoesNotFit`` for a text that the base does not read whole; None: no base is known.
        keeps: says what the base cannot draw of these pictures; None where it can, or no base is known.

    Returns:
        The findings; unusable pictures are among them and raise nothing.

    Raises:
        BadFile: there is no such folder.
        BadConfig: an impossible resolution, or both an instance prompt and a trigger.

    Example:
        >>> import tempfile
        >>> report = check_folder(tempfile.mkdtemp())
        >>> report.ok, [str(problem) for problem in report.problems]
        (False, ['there is no usable image: put PNG, JPEG or WebP files into the folder'])
    """
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    if size is not None and min(size) < 1:
        raise BadConfig(f"the resolution must be at least 1 pixel on each side, not {size[0]}x{size[1]}")
    answers_to = _trigger(instance_prompt, trigger)
    found = scan_folder(folder, encoding=encoding)
    problems = [
        *_unusable(found),
        *_captions(found, answers_to),
        *_texts(found, answers_to, fits),
        *_drawn(found, keeps),
        *(() if instance_prompt is None else _subject(found, answers_to)),
        *_sizes(found, size),
        *_same(found),
        *_content(found),
    ]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda problem: order[problem.severity])
    captioned = [item for item in found if answers_to.caption(item) is not None]
    return CheckReport(
        folder=found.folder,
        images=len(found),
        captions=len(captioned),
        sizes=tuple((item.width, item.height) for item in found),
        problems=tuple(problems),
        digest=found.digest,
        sent=tuple(answers_to.of(item) for item in captioned[:3]),
    )


def _trigger(instance_prompt: str | None, trigger: str | None) -> Trigger:
    """The trigger of the training that is meant; one without words, which leaves captions alone, where none is."""
    if instance_prompt is not None and trigger is not None:
        raise BadConfig("an instance prompt is for a subject and a trigger for a style: give one of the two")
    if instance_prompt is not None:
        return Trigger.of_subject(instance_prompt)
    return Trigger("", "", folders=True) if trigger is None else Trigger.of_style(trigger)


def _unusable(found: ImageFolder) -> Iterator[Problem]:
    if not found.items:
        yield Problem("error", "there is no usable image: put PNG, JPEG or WebP files into the folder")
    elif len(found) < FEW:
        text = (
            f"only {count(len(found), 'image')}: with {FEW} or more in different places, the background is not learned"
        )
        yield Problem("warning", text)
    for entry in found.skipped:
        hidden = entry.reason.startswith(("is a hidden", "is neither", "is the folder of a run"))
        yield Problem("note" if hidden else "warning", f"not used: {shown(entry.reason)}", (_name(entry.file, found),))
    for entry in found.refused:
        yield Problem("error", shown(entry.reason), (_name(entry.file, found),))


def _captions(found: ImageFolder, trigger: Trigger) -> Iterator[Problem]:
    captioned = [item for item in found if trigger.caption(item)]
    bare = [item for item in found if not trigger.caption(item)]
    if bare and not trigger.words:
        yield Problem("note", "no captions and no prompt: a training needs an instance prompt or a trigger")
    if bare and trigger.phrase:
        text = "have no caption: they are trained with the trigger alone, so what they show becomes part of the style"
        yield Problem("warning", text, _names(bare, found))
    elif captioned and bare:
        text = "have no caption while others have one: write them, or train with the instance prompt alone"
        yield Problem("warning", text, _names(bare, found))
    if found.several_lines:
        files = tuple(_name(file, found) for file in found.several_lines)
        yield Problem("note", "captions of several lines are joined to one", files)
    own = [item.caption for item in captioned if item.caption_from != "folder"]
    if len(own) > 2 and len(set(own)) == 1:
        yield Problem("note", f"every caption is the same ({shown(repr(own[0]))}): an instance prompt does as much")


def _texts(found: ImageFolder, trigger: Trigger, fits: Fits | None) -> Iterator[Problem]:
    """Texts that the base does not read whole: a training on it refuses them."""
    sent: dict[str, list[ImageItem]] = defaultdict(list)
    for item in found:
        sent[trigger.of(item)].append(item)
    if fits is None:
        long = [item for text, items in sent.items() if len(text.split()) > LONG_CAPTION for item in items]
        if long:
            text = "captions longer than most text encoders read: a training may refuse them, and --base tells which"
            yield Problem("warning", text, _names(long, found))
        return
    for text, items in sent.items():
        try:
            fits(text)
        except DoesNotFit as error:
            yield Problem("error", shown(error), _names(items, found))


def _drawn(found: ImageFolder, keeps: Keeps | None) -> Iterator[Problem]:
    text = keeps(found) if keeps is not None and found.items else None
    if text:
        yield Problem("warning", text)


def _subject(found: ImageFolder, trigger: Trigger) -> Iterator[Problem]:
    """Judges an instance prompt, and says what it does to the captions."""
    prompt, words = trigger.alone, subject_words(trigger.alone)
    if not words:
        yield Problem(
            "error", f"the instance prompt {prompt!r} names no subject: write one, such as 'a photo of sks dog'"
        )
    elif len(words) == 1:
        text = (
            f"the instance prompt {prompt!r} has no trigger: every {words[0]} will change; "
            f"put a rare word before it, such as 'sks {words[0]}'"
        )
        yield Problem("warning", text)
    without = [item for item in found if trigger.caption(item) and trigger.of(item) != item.caption]
    if without:
        text = f"captions that do not say {trigger.words!r} get the instance prompt in front"
        yield Problem("note", text, _names(without, found))
    folders = [item for item in found if item.caption_from == "folder"]
    if folders:
        yield Problem(
            "note", "the words of a folder's name are not used beside an instance prompt", _names(folders, found)
        )


def _sizes(found: ImageFolder, size: tuple[int, int] | None) -> Iterator[Problem]:
    long = [item for item in found if max(item.width, item.height) > STRETCHED * min(item.width, item.height)]
    if long:
        yield Problem("warning", "more than four times as long as wide: most of it is cut off", _names(long, found))
    shapes = Counter(_shape(item) for item in found)
    if len(shapes) > 1:
        text = ", ".join(f"{count} {shape}" for shape, count in sorted(shapes.items()))
        yield Problem("note", f"mixed shapes ({text}): they are cropped to the training resolution")
    if size is None:
        return
    width, height = size
    small = [item for item in found if item.width < width or item.height < height]
    if small:
        text = (
            f"smaller than {width}x{height}, so they are enlarged and blurred: use larger ones, or a lower resolution"
        )
        yield Problem("warning", text, _names(small, found))
    cut = [item for item in found if _cut(item, width, height) > CUT and item not in long]
    if cut:
        most = max(_cut(item, width, height) for item in cut)
        text = f"up to {most:.0%} of the picture is cut off at {width}x{height}: crop them yourself around the subject"
        yield Problem("warning", text, _names(cut, found))


def _same(found: ImageFolder) -> Iterator[Problem]:
    for group in found.duplicates:
        yield Problem("warning", "the same file several times, so it counts more than others", _names(group, found))
    first = {item.digest: item for item in reversed(found.items)}
    for alike in same_pictures([item for item in found if first[item.digest] is item]):
        text = "the same picture in two files" if len(alike) == 2 else f"the same picture in {len(alike)} files"
        yield Problem("warning", text, _names(alike, found))
    often = Counter(item.repeats for item in found if item.repeats > OFTEN)
    for repeats, number in sorted(often.items()):
        text = f"{count(number, 'image')} counted {repeats} times each, as the name of the folder says: is that meant?"
        yield Problem("warning", text, _names([item for item in found if item.repeats == repeats], found))


def _content(found: ImageFolder) -> Iterator[Problem]:
    blank = [item for item in found if float(item.probe.thumbnail.std(axis=(0, 1)).max()) < 1.0]
    if blank:
        yield Problem("warning", "one colour all over: nothing to learn", _names(blank, found))
    moving = [item for item in found if item.probe.several]
    if moving:
        yield Problem("note", "animated or with several pages: the first frame is used", _names(moving, found))
    odd = Counter(item.probe.mode for item in found if item.probe.mode not in ("RGB", "L", "P"))
    if odd:
        text = ", ".join(f"{count} {mode}" for mode, count in sorted(odd.items()))
        yield Problem("note", f"converted to RGB ({text}); transparent parts are laid over white")
    turned = sum(item.probe.rotated for item in found)
    if turned:
        yield Problem("note", f"{count(turned, 'image')} turned as the camera recorded it (EXIF)")


def _shape(item: ImageItem) -> str:
    ratio = item.width / item.height
    return "square" if 0.95 < ratio < 1.05 else "wide" if ratio > 1 else "tall"


def _cut(item: ImageItem, width: int, height: int) -> float:
    """The share of a picture's area that a crop to the shape of ``width`` x ``height`` leaves out."""
    ratio = (item.width / item.height) / (width / height)
    return 1 - min(ratio, 1 / ratio)


def _names(items: Iterable[ImageItem], found: ImageFolder) -> tuple[str, ...]:
    return tuple(_name(item.file, found) for item in items)


def _name(file: Path, found: ImageFolder) -> str:
    inside = file.is_relative_to(found.folder)
    return shown(file.relative_to(found.folder).as_posix() if inside else str(file))
