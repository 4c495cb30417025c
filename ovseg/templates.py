"""The published prompt templates, as data.

Every list keeps the wording and the order of its source, odd English included ("a origami {}."),
because the embeddings of published results depend on it. `source` says where a list was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class TemplateSet:
    """A named list of prompt templates.

    Attributes:
        name: What a user types, for example "imagenet".
        templates: The templates, each with one "{}" where the label goes.
        source: Where the list was published.
    """

    name: str
    templates: tuple[str, ...]
    source: str


_IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

# The first seven that forward selection picks from the eighty, in the order picked.
_IMAGENET_SIMPLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# GroupViT and TCL changed one word of the seven: "a bad photo of a {}.".
_GROUPVIT = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

_TCL = (*_GROUPVIT, "a photo of many {}.", "a photo of {}s.")

_MASKCLIP = (
    *_IMAGENET,
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

_CALTECH101 = (
    "a photo of a {}.",
    "a painting of a {}.",
    "a plastic {}.",
    "a sculpture of a {}.",
    "a sketch of a {}.",
    "a tattoo of a {}.",
    "a toy {}.",
    "a rendition of a {}.",
    "a embroidered {}.",
    "a cartoon {}.",
    "a {} in a video game.",
    "a plushie {}.",
    "a origami {}.",
    "art of a {}.",
    "graffiti of a {}.",
    "a drawing of a {}.",
    "a doodle of a {}.",
    "a photo of the {}.",
    "a painting of the {}.",
    "the plastic {}.",
    "a sculpture of the {}.",
    "a sketch of the {}.",
    "a tattoo of the {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "the embroidered {}.",
    "the cartoon {}.",
    "the {} in a video game.",
    "the plushie {}.",
    "the origami {}.",
    "art of the {}.",
    "graffiti of the {}.",
    "a drawing of the {}.",
    "a doodle of the {}.",
)

_CIFAR = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
)

_CARS = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of my {}.",
    "i love my {}!",
    "a photo of my dirty {}.",
    "a photo of my clean {}.",
    "a photo of my new {}.",
    "a photo of my old {}.",
)

_COUNTRY211 = (
    "a photo i took in {}.",
    "a photo i took while visiting {}.",
    "a photo from my home country of {}.",
    "a photo from my visit to {}.",
    "a photo showing the country of {}.",
)

_FER2013 = (
    "a photo of a {} looking face.",
    "a photo of a face showing the emotion: {}.",
    "a photo of a face looking {}.",
    "a face that looks {}.",
    "they look {}.",
    "look at how {} they are.",
)

_GTSRB = (
    'a zoomed in photo of a "{}" traffic sign.',
    'a centered photo of a "{}" traffic sign.',
    'a close up photo of a "{}" traffic sign.',
)

# The next four lists are products of a few words in their source, so they are written as such.
_DTD = tuple(
    f"a photo of {article} {{}} {noun}."
    for article in ("a", "the")
    for noun in ("texture", "pattern", "thing", "object")
)

_RESISC45 = tuple(
    f"{view} {kind} of {article}{{}}."
    for article in ("", "a ", "the ")
    for kind in ("imagery", "photo", "view")
    for view in ("satellite", "aerial")
)

_UCF101 = tuple(
    f"a {medium} of {article} person {verb}{{}}."
    for verb in ("", "using ", "doing ", "during ", "performing ", "practicing ")
    for article in ("a", "the")
    for medium in ("photo", "video", "example", "demonstration")
)

_KINETICS700 = tuple(
    f"a {medium} of {subject}{{}}."
    for medium in ("photo", "video", "example", "demonstration")
    for subject in (
        "",
        "a person ",
        "a person using ",
        "a person doing ",
        "a person during ",
        "a person performing ",
        "a person practicing ",
    )
)

_VIDEO = (
    "a photo of a {}.",
    "a video frame of a {}.",
    "a video frame of the {}.",
    "a still from a video of a {}.",
    "a blurry video frame of a {}.",
    "a low resolution video frame of a {}.",
)

_NOTEBOOK = "OpenAI CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb"
_PROMPTS_MD = "OpenAI CLIP, data/prompts.md"
_TCL_FILE = "TCL (Cha et al., CVPR 2023), github.com/khanrc/tcl, datasets/templates.py"

_SETS = (
    TemplateSet("none", ("{}",), "the bare label (LSeg; KITTI in OpenAI CLIP, data/prompts.md)"),
    TemplateSet("imagenet", _IMAGENET, f"{_NOTEBOOK}, the 80 templates of the paper"),
    TemplateSet("imagenet-simple", _IMAGENET_SIMPLE, f"{_NOTEBOOK}, the best 7 of the 80"),
    TemplateSet("objects", ("a photo of a {}.",), f"{_PROMPTS_MD}, PascalVOC2007"),
    TemplateSet("scenes", ("a photo of a {}.", "a photo of the {}."), f"{_PROMPTS_MD}, SUN397"),
    TemplateSet("stl10", ("a photo of a {}.", "a photo of the {}."), f"{_PROMPTS_MD}, STL10"),
    TemplateSet("food", ("a photo of {}, a type of food.",), f"{_PROMPTS_MD}, Food101"),
    TemplateSet("pets", ("a photo of a {}, a type of pet.",), f"{_PROMPTS_MD}, OxfordPets"),
    TemplateSet("flowers", ("a photo of a {}, a type of flower.",), f"{_PROMPTS_MD}, Flowers102"),
    TemplateSet("birds", ("a photo of a {}, a type of bird.",), f"{_PROMPTS_MD}, Birdsnap"),
    TemplateSet(
        "aircraft",
        ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
        f"{_PROMPTS_MD}, FGVCAircraft",
    ),
    TemplateSet("cars", _CARS, f"{_PROMPTS_MD}, StanfordCars"),
    TemplateSet("textures", _DTD, f"{_PROMPTS_MD}, DescribableTextures"),
    TemplateSet(
        "satellite",
        (
            "a centered satellite photo of {}.",
            "a centered satellite photo of a {}.",
            "a centered satellite photo of the {}.",
        ),
        f"{_PROMPTS_MD}, EuroSAT",
    ),
    TemplateSet("remote-sensing", _RESISC45, f"{_PROMPTS_MD}, RESISC45"),
    TemplateSet("caltech101", _CALTECH101, f"{_PROMPTS_MD}, Caltech101"),
    TemplateSet("cifar", _CIFAR, f"{_PROMPTS_MD}, CIFAR10 and CIFAR100"),
    TemplateSet("actions", _UCF101, f"{_PROMPTS_MD}, UCF101"),
    TemplateSet("kinetics", _KINETICS700, f"{_PROMPTS_MD}, Kinetics700"),
    TemplateSet("digits", ('a photo of the number: "{}".',), f"{_PROMPTS_MD}, MNIST"),
    TemplateSet("counts", ("a photo of {} objects.",), f"{_PROMPTS_MD}, CLEVRCounts"),
    TemplateSet("countries", _COUNTRY211, f"{_PROMPTS_MD}, Country211"),
    TemplateSet("emotions", _FER2013, f"{_PROMPTS_MD}, FacialEmotionRecognition2013"),
    TemplateSet("traffic-signs", _GTSRB, f"{_PROMPTS_MD}, GTSRB"),
    TemplateSet("histology", ("this is a photo of {}",), f"{_PROMPTS_MD}, PatchCamelyon"),
    TemplateSet("memes", ("a {}.",), f"{_PROMPTS_MD}, HatefulMemes"),
    TemplateSet("reviews", ("a {} review of a movie.",), f"{_PROMPTS_MD}, SST2"),
    TemplateSet(
        "groupvit",
        _GROUPVIT,
        "GroupViT (Xu et al., CVPR 2022), github.com/NVlabs/GroupViT, "
        "datasets/imagenet_template.py, subset",
    ),
    TemplateSet("tcl", _TCL, f"{_TCL_FILE}, custom"),
    TemplateSet(
        "tips",
        _TCL,
        "TIPSv2, github.com/google-deepmind/tips, pytorch/TIPS_zeroshot_segmentation.ipynb; "
        "the nine of TCL",
    ),
    TemplateSet("maskclip", _MASKCLIP, f"MaskCLIP (Zhou et al., ECCV 2022); {_TCL_FILE}"),
    TemplateSet(
        "video",
        _VIDEO,
        "written for ovseg: frames of video, for which no published list is known "
        "(data/prompts.md of OpenAI CLIP has none for YouTube-BB)",
    ),
    TemplateSet(
        "mini",
        ("{}", "a photo of the large {}.", "a photo of the small {}."),
        "written for ovseg: what serves the model mini best, two of them from imagenet-simple",
    ),
)

TEMPLATE_SETS: Mapping[str, TemplateSet] = MappingProxyType({entry.name: entry for entry in _SETS})
"""Every template set, by name."""

TEMPLATE_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "identity": "none",
        "kitti": "none",
        "imagenet-1k": "imagenet",
        "imagenet1k": "imagenet",
        "imagenet-80": "imagenet",
        "imagenet-7": "imagenet-simple",
        "pascal-voc": "objects",
        "pascal-voc-2007": "objects",
        "voc2007": "objects",
        "sun397": "scenes",
        "stl-10": "stl10",
        "food101": "food",
        "food-101": "food",
        "oxford-pets": "pets",
        "oxford-iiit-pet": "pets",
        "flowers102": "flowers",
        "oxford-flowers": "flowers",
        "birdsnap": "birds",
        "fgvc-aircraft": "aircraft",
        "stanford-cars": "cars",
        "dtd": "textures",
        "describable-textures": "textures",
        "eurosat": "satellite",
        "resisc45": "remote-sensing",
        "aerial": "remote-sensing",
        "caltech-101": "caltech101",
        "cifar10": "cifar",
        "cifar-10": "cifar",
        "cifar100": "cifar",
        "cifar-100": "cifar",
        "ucf101": "actions",
        "kinetics700": "kinetics",
        "kinetics-700": "kinetics",
        "mnist": "digits",
        "clevr-counts": "counts",
        "country211": "countries",
        "fer2013": "emotions",
        "gtsrb": "traffic-signs",
        "pcam": "histology",
        "patch-camelyon": "histology",
        "hateful-memes": "memes",
        "sst2": "reviews",
        "tipsv2": "tips",
    }
)
"""Names of the datasets that the lists were published for, and other spellings, to set names."""
