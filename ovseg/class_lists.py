"""The classes of the usual benchmarks, in their official order.

Names are written as words that can be asked: "diningtable" is "dining table", "floor-wood" is "wood floor", "sky-other" is "sky".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, person, potted "
    "plant, sheep, sofa, train, tv monitor"
)
_CAMVID = {
    "sky": "808080", "building": "800000", "pole": "c0c080", "road": "804080", "sidewalk": "3c28de", "tree": "808000",
    "sign": "c08080", "fence": "404080", "car": "400080", "pedestrian": "404000", "bicyclist": "0080c0",
}  # fmt: skip
_CITYSCAPES = {  # group: class, colour
    "flat": {"road": "804080", "sidewalk": "f423e8"},
    "construction": {"building": "464646", "wall": "66669c", "fence": "be9999"},
    "object": {"pole": "999999", "traffic light": "faaa1e", "traffic sign": "dcdc00"},
    "nature": {"vegetation": "6b8e23", "terrain": "98fb98"},
    "": {"sky": "4682b4"},
    "human": {"person": "dc143c", "rider": "ff0000"},
    "vehicle": {
        "car": "00008e", "truck": "000046", "bus": "003c64", "train": "005064", "motorcycle": "0000e6", "bicycle": "770b20",
    },
}  # fmt: skip
_ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table, "
    "mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, "
    "fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, "
    "sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen "
    "door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, "
    "palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, "
    "chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, "
    "escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, "
    "swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"
)
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking "
    "meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, "
    "suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis "
    "racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, "
    "pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell "
    "phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
_COCO_STUFF = (
    "banner, blanket, branch, bridge, building, bush, cabinet, cage, cardboard, carpet, ceiling, tile ceiling, cloth, "
    "clothes, clouds, counter, cupboard, curtain, desk, dirt, door, fence, marble floor, floor, stone floor, tile floor, wood "
    "floor, flower, fog, food, fruit, furniture, grass, gravel, ground, hill, house, leaves, light, mat, metal, mirror, moss, "
    "mountain, mud, napkin, net, paper, pavement, pillow, plant, plastic, platform, playing field, railing, railroad, river, "
    "road, rock, roof, rug, salad, sand, sea, shelf, sky, skyscraper, snow, solid, stairs, stone, straw, structure, table, "
    "tent, textile, towel, tree, vegetable, brick wall, concrete wall, wall, panel wall, stone wall, tile wall, wood wall, "
    "water, water drops, window blind, window, wood"
)
_CONTEXT = (
    "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat, ceiling, "
    "chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse, keyboard, light, "
    "motorbike, mountain, mouse, person, plate, platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, sky, "
    "snow, sofa, table, track, train, tree, truck, tv monitor, wall, water, window, wood"
)


def _voc_color(index: int) -> str:
    """Give the colour of a class in the palette of PASCAL VOC: the bits of the index, spread over red, green and blue from the top."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return bytes(channels).hex()


def _colored(names: Mapping[str, str], parent: str = "") -> list[dict[str, Any]]:
    extra = {"parent": parent} if parent else {}
    return [{"name": name, "color": f"#{color}", **extra} for name, color in names.items()]


def _documents() -> dict[str, list[Any]]:
    voc = _colored({name: _voc_color(index) for index, name in enumerate(_VOC.split(", "), start=1)})
    return {
        "voc20": voc,
        "voc21": [*_colored({"background": _voc_color(0)}), *voc],
        "cityscapes": [label for group, names in _CITYSCAPES.items() for label in _colored(names, group)],
        "camvid": _colored(_CAMVID),
        "ade20k": _ADE20K.split(", "),
        "coco": _COCO.split(", "),
        "coco-stuff": [*_COCO.split(", "), *_COCO_STUFF.split(", ")],
        "context59": _CONTEXT.split(", "),
        "context60": ["background", *_CONTEXT.split(", ")],
    }


CLASS_LISTS: Mapping[str, list[Any]] = MappingProxyType(_documents())
"""The labels of each list, as a vocabulary file has them.

| name | what | labels |
|---|---|---|
| `voc20`, `voc21` | PASCAL VOC 2012 with its colours; 21 begins with "background" | 20, 21 |
| `cityscapes` | the classes that are evaluated, with their colours and groups | 19 |
| `camvid` | the classes of the SegNet split, with their colours | 11 |
| `ade20k` | the scene parsing benchmark | 150 |
| `coco` | the things of COCO | 80 |
| `coco-stuff` | the things, then the stuff | 171 |
| `context59`, `context60` | PASCAL Context; 60 begins with "background" | 59, 60 |
"""
