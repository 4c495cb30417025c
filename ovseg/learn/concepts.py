"""The words that `mini` is taught: everyday names for ImageNet classes, and names for the classes of each data set.

Every class has several names, because the network must learn what a thing is called by anybody, not one dataset's spelling. Names
that appear nowhere in this file and in no click are unseen in training: `RENAMED_CAMVID` holds eleven of them for the test of that.
"""

from __future__ import annotations

# (first, last, everyday name): what people call the ImageNet classes first..last. Later rows win where rows overlap.
_EVERYDAY: tuple[tuple[int, int, str], ...] = (
    (0, 6, "fish"), (2, 4, "shark"), (7, 8, "chicken"), (9, 24, "bird"), (25, 29, "salamander"), (30, 32, "frog"),
    (33, 37, "turtle"), (38, 48, "lizard"), (49, 50, "crocodile"), (51, 51, "dinosaur"), (52, 68, "snake"),
    (69, 69, "fossil"), (70, 70, "spider"), (72, 77, "spider"), (80, 96, "bird"), (87, 90, "parrot"),
    (97, 98, "duck"), (100, 100, "swan"), (104, 104, "kangaroo"), (107, 107, "jellyfish"), (113, 115, "snail"),
    (118, 121, "crab"), (122, 124, "lobster"), (127, 146, "bird"), (145, 145, "penguin"), (147, 148, "whale"),
    (150, 150, "seal"), (151, 268, "dog"), (269, 272, "wolf"), (273, 275, "wild dog"), (277, 280, "fox"),
    (281, 285, "cat"), (286, 293, "big cat"), (291, 291, "lion"), (292, 292, "tiger"), (288, 290, "leopard"),
    (294, 297, "bear"), (298, 299, "small animal"), (300, 307, "beetle"), (308, 320, "insect"), (321, 326, "butterfly"),
    (330, 332, "rabbit"), (333, 333, "hamster"), (335, 335, "squirrel"), (337, 337, "beaver"), (339, 339, "horse"),
    (340, 340, "zebra"), (341, 343, "pig"), (345, 347, "cow"), (348, 349, "sheep"), (350, 350, "goat"),
    (351, 353, "antelope"), (354, 354, "camel"), (355, 355, "llama"), (356, 362, "small animal"), (365, 384, "monkey"),
    (365, 369, "ape"), (385, 386, "elephant"), (387, 388, "panda"), (389, 397, "fish"), (399, 400, "robe"),
    (402, 402, "guitar"), (403, 403, "ship"), (404, 404, "airplane"), (405, 405, "airship"), (407, 407, "van"),
    (408, 408, "vehicle"), (409, 409, "clock"), (411, 411, "clothing"), (412, 412, "trash can"), (413, 413, "gun"),
    (414, 414, "backpack"), (415, 415, "shop"), (417, 417, "balloon"), (418, 418, "pen"), (420, 420, "guitar"),
    (421, 421, "stair railing"), (423, 423, "chair"), (424, 424, "shop"), (425, 425, "building"), (427, 427, "barrel"),
    (429, 430, "ball"), (431, 431, "crib"), (434, 434, "towel"), (435, 435, "bathtub"), (436, 436, "car"),
    (437, 437, "lighthouse"), (439, 439, "hat"), (440, 440, "bottle"), (441, 441, "glass"), (442, 442, "tower"),
    (444, 444, "bicycle"), (445, 445, "swimsuit"), (448, 448, "birdhouse"), (449, 449, "building"), (451, 451, "tie"),
    (453, 453, "bookshelf"), (454, 454, "shop"), (457, 457, "bow tie"), (460, 460, "sea wall"), (463, 463, "bucket"),
    (466, 466, "train"), (467, 467, "shop"), (468, 468, "taxi"), (470, 470, "candle"), (472, 472, "boat"),
    (474, 474, "sweater"), (478, 478, "box"), (479, 479, "wheel"), (480, 480, "machine"), (483, 483, "castle"),
    (484, 484, "sailboat"), (487, 487, "cell phone"), (489, 489, "fence"), (492, 493, "chest of drawers"),
    (495, 495, "cabinet"), (497, 497, "church"), (498, 498, "building"), (499, 499, "knife"), (504, 504, "cup"),
    (505, 505, "coffee pot"), (508, 508, "keyboard"), (509, 509, "shop"), (510, 510, "ship"), (511, 511, "car"),
    (514, 514, "boot"), (515, 515, "hat"), (516, 516, "crib"), (517, 517, "construction crane"), (518, 518, "helmet"),
    (519, 519, "crate"), (520, 520, "bed"), (521, 521, "cooking pot"), (525, 525, "dam"), (526, 526, "desk"),
    (527, 527, "computer"), (528, 528, "telephone"), (530, 530, "clock"), (531, 531, "watch"), (532, 532, "table"),
    (536, 536, "dock"), (537, 537, "sled"), (538, 538, "dome"), (539, 539, "mat"), (541, 541, "drum"),
    (544, 544, "cooking pot"), (545, 545, "fan"), (546, 546, "guitar"), (547, 547, "train"), (548, 548, "television"),
    (550, 550, "coffee machine"), (553, 553, "filing cabinet"), (554, 554, "boat"), (555, 555, "fire truck"),
    (556, 556, "fireplace"), (557, 557, "flag"), (559, 559, "chair"), (560, 560, "helmet"), (561, 561, "forklift"),
    (562, 562, "fountain"), (563, 563, "pen"), (564, 564, "bed"), (565, 565, "train"), (567, 567, "pan"),
    (568, 568, "coat"), (569, 569, "truck"), (570, 570, "mask"), (571, 571, "gas pump"), (572, 572, "wine glass"),
    (573, 573, "go-kart"), (574, 574, "ball"), (575, 575, "golf cart"), (576, 576, "boat"), (578, 578, "dress"),
    (579, 579, "piano"), (580, 580, "greenhouse"), (581, 581, "car"), (582, 582, "supermarket"), (586, 586, "truck"),
    (589, 589, "hair dryer"), (590, 590, "cell phone"), (592, 592, "computer"), (595, 595, "tractor"),
    (598, 598, "television"), (601, 601, "dress"), (603, 603, "horse cart"), (608, 608, "jeans"), (609, 609, "car"),
    (610, 610, "shirt"), (612, 612, "rickshaw"), (614, 614, "kimono"), (617, 617, "coat"), (619, 619, "lamp"),
    (620, 620, "laptop"), (624, 624, "library"), (625, 625, "boat"), (627, 627, "car"), (628, 628, "ship"),
    (630, 630, "shoe"), (632, 632, "speaker"), (637, 637, "mailbox"), (638, 639, "swimsuit"), (640, 640, "manhole"),
    (643, 643, "mask"), (649, 649, "stone"), (650, 650, "microphone"), (651, 651, "microwave"), (652, 652, "uniform"),
    (654, 654, "bus"), (655, 655, "skirt"), (656, 656, "car"), (657, 657, "missile"), (660, 660, "house"),
    (661, 661, "car"), (663, 663, "building"), (664, 664, "computer screen"), (665, 665, "motorcycle"),
    (668, 668, "mosque"), (670, 670, "motorcycle"), (671, 671, "bicycle"), (672, 672, "tent"), (673, 673, "computer mouse"),
    (675, 675, "truck"), (679, 679, "necklace"), (681, 681, "laptop"), (682, 682, "monument"), (687, 687, "organ"),
    (690, 690, "cart"), (693, 693, "paddle"), (697, 697, "pajamas"), (698, 698, "palace"), (701, 701, "parachute"),
    (703, 703, "bench"), (704, 704, "parking meter"), (705, 705, "train"), (706, 706, "patio"), (707, 707, "telephone"),
    (713, 713, "printer"), (716, 716, "fence"), (717, 717, "truck"), (718, 718, "pier"), (721, 721, "pillow"),
    (722, 722, "ball"), (725, 725, "jug"), (728, 728, "bag"), (733, 733, "pole"), (734, 734, "van"), (735, 735, "coat"),
    (736, 736, "pool table"), (737, 737, "bottle"), (738, 738, "flower pot"), (741, 741, "carpet"), (742, 742, "printer"),
    (743, 743, "prison"), (748, 748, "handbag"), (750, 750, "blanket"), (751, 751, "race car"), (752, 752, "tennis racket"),
    (753, 753, "radiator"), (757, 757, "camper van"), (759, 759, "camera"), (760, 760, "refrigerator"),
    (761, 761, "remote control"), (762, 762, "restaurant"), (763, 764, "gun"), (765, 765, "chair"), (768, 768, "ball"),
    (770, 770, "shoe"), (774, 774, "sandal"), (779, 779, "bus"), (780, 780, "sailboat"), (782, 782, "screen"),
    (788, 788, "shop"), (790, 790, "basket"), (791, 791, "shopping cart"), (792, 792, "shovel"), (794, 794, "curtain"),
    (795, 795, "skis"), (799, 799, "door"), (802, 802, "snowmobile"), (805, 805, "ball"), (806, 806, "sock"),
    (808, 808, "hat"), (809, 809, "bowl"), (813, 813, "spatula"), (814, 814, "boat"), (817, 817, "car"),
    (819, 819, "stage"), (820, 820, "train"), (821, 821, "bridge"), (825, 825, "wall"), (827, 827, "oven"),
    (829, 829, "tram"), (831, 831, "couch"), (833, 833, "submarine"), (834, 834, "suit"), (836, 837, "sunglasses"),
    (839, 839, "bridge"), (841, 841, "sweatshirt"), (842, 842, "shorts"), (846, 846, "lamp"), (847, 847, "tank"),
    (849, 849, "teapot"), (850, 850, "teddy bear"), (851, 851, "tv"), (852, 852, "ball"), (853, 853, "roof"),
    (854, 854, "curtain"), (857, 857, "chair"), (858, 858, "roof"), (859, 859, "toaster"), (860, 860, "shop"),
    (861, 861, "toilet"), (864, 864, "truck"), (865, 865, "shop"), (866, 866, "tractor"), (867, 867, "truck"),
    (868, 868, "tray"), (869, 869, "coat"), (870, 870, "tricycle"), (871, 871, "sailboat"), (874, 874, "bus"),
    (876, 876, "bathtub"), (878, 878, "keyboard"), (879, 879, "umbrella"), (882, 882, "vacuum cleaner"), (883, 883, "vase"),
    (888, 888, "bridge"), (889, 889, "violin"), (890, 890, "ball"), (892, 892, "clock"), (893, 893, "wallet"),
    (894, 894, "wardrobe"), (895, 895, "airplane"), (896, 896, "sink"), (897, 897, "washing machine"), (898, 898, "bottle"),
    (900, 900, "water tower"), (901, 901, "jug"), (904, 905, "window"), (906, 906, "tie"), (907, 907, "bottle"),
    (908, 908, "airplane"), (909, 909, "pan"), (910, 910, "spoon"), (912, 912, "fence"), (914, 914, "sailboat"),
    (915, 915, "tent"), (917, 918, "book"), (919, 919, "street sign"), (920, 920, "traffic light"), (921, 921, "book"),
    (922, 922, "menu"), (923, 923, "plate of food"), (924, 929, "food"), (928, 928, "ice cream"), (930, 935, "food"),
    (930, 932, "bread"), (934, 934, "hot dog"), (936, 946, "vegetable"), (947, 947, "mushroom"), (948, 957, "fruit"),
    (948, 948, "apple"), (950, 950, "orange"), (954, 954, "banana"), (958, 958, "hay"), (959, 965, "food"),
    (963, 963, "pizza"), (966, 966, "wine"), (967, 967, "coffee"), (968, 968, "cup"), (970, 970, "mountain"),
    (972, 972, "cliff"), (973, 973, "coral reef"), (975, 975, "lake"), (976, 976, "coast"), (977, 978, "beach"),
    (979, 979, "valley"), (980, 980, "volcano"), (981, 983, "person"), (984, 984, "field of flowers"), (985, 986, "flower"),
    (987, 987, "corn"), (991, 997, "mushroom"), (999, 999, "toilet paper"),
)  # fmt: skip

# ImageNet file names that mislead: the word means something else, or nobody uses it.
_RENAMED = {
    7: "rooster", 15: "robin bird", 21: "kite bird", 97: "male duck", 134: "crane bird", 251: "dalmatian dog",
    242: "boxer dog", 260: "chow chow dog", 263: "corgi dog", 264: "corgi dog", 222: "kuvasz dog", 300: "tiger beetle",
    321: "admiral butterfly", 339: "chestnut horse", 405: "airship", 408: "amphibious vehicle", 412: "trash can",
    428: "wheelbarrow", 437: "lighthouse", 439: "bearskin hat", 456: "bow and arrow", 458: "brass plaque", 468: "taxi",
    474: "cardigan sweater", 481: "cassette tape", 517: "construction crane", 553: "filing cabinet", 581: "car grille",
    589: "hair dryer", 608: "jeans", 610: "sports jersey", 630: "loafer shoe", 638: "swimsuit", 639: "one-piece swimsuit",
    664: "computer monitor", 666: "mortar and pestle", 673: "computer mouse", 676: "dog muzzle", 677: "metal nail",
    681: "notebook computer", 687: "pipe organ", 714: "plectrum", 726: "carpenter's plane", 733: "pole",
    744: "artillery shell", 751: "race car", 769: "ruler", 782: "screen", 800: "slot machine", 810: "space bar key",
    824: "stole scarf", 836: "sunglasses", 844: "light switch", 847: "army tank", 876: "wash tub", 881: "upright piano",
    882: "vacuum cleaner", 884: "vaulted ceiling", 896: "washbasin", 897: "washing machine", 908: "airplane wing",
    911: "wool", 916: "website", 923: "plate of food", 966: "red wine", 989: "rose hip", 998: "ear of corn",
}  # fmt: skip


def imagenet_name(index: int, file_name: str) -> str:
    """Return the readable name of an ImageNet class.

    Args:
        index: ImageNet index, 0 to 999.
        file_name: The class name as it stands in the sample's file name, with underscores.
    """
    return _RENAMED.get(index, file_name.replace("_", " "))


def imagenet_everyday(index: int) -> str | None:
    """Return the everyday word for an ImageNet class ("dog" for a beagle), or None where its own name is that word."""
    word = None
    for first, last, name in _EVERYDAY:
        if first <= index <= last:
            word = name
    return word


CAMVID: tuple[tuple[str, ...], ...] = (
    ("sky", "blue sky", "cloudy sky"),
    ("building", "buildings", "house facade", "office building", "houses", "tower block"),
    ("pole", "lamp post", "column", "metal pole"),
    ("road", "asphalt road", "roadway", "road surface"),
    ("pavement", "sidewalk", "paved walkway"),
    ("tree", "trees", "vegetation"),
    ("traffic sign", "sign", "road sign", "sign post", "notice board", "information sign", "billboard", "placard", "direction sign"),
    ("fence", "metal fence", "barrier"),
    ("car", "cars", "vehicle", "motorcar", "passenger car"),
    ("pedestrian", "person", "people walking", "people", "man", "woman", "walker", "bystander", "commuter", "jogger", "onlooker",
     "person walking past", "person on foot"),
    ("bicyclist", "bicycle rider", "person on a bicycle", "man riding a bike", "biker", "bike rider", "mountain biker",
     "person riding a bicycle"),
)

CITYSCAPES: tuple[tuple[str, ...], ...] = (
    ("road",), ("sidewalk", "pavement"), ("building",), ("wall",), ("fence",), ("pole",), ("traffic light",),
    ("traffic sign",), ("vegetation", "tree", "bush"), ("grass", "terrain"), ("sky",), ("person", "pedestrian", "bystander"),
    ("rider", "bicycle rider", "biker"), ("car",), ("truck",), ("bus",), ("train",), ("motorcycle",), ("bicycle",),
)  # fmt: skip

VOC: tuple[tuple[str, ...], ...] = (
    ("airplane", "aeroplane", "plane"), ("bicycle", "bike"), ("bird",), ("boat", "ship"), ("bottle",), ("bus", "coach"),
    ("car",), ("cat", "house cat"), ("chair",), ("cow", "cattle"), ("dining table", "table"), ("dog", "pet dog"),
    ("horse", "pony"), ("motorbike", "motorcycle"), ("person", "man", "woman", "human"), ("potted plant", "houseplant"),
    ("sheep",), ("sofa", "couch"), ("train",), ("tv", "television", "monitor"),
)  # fmt: skip

AERIAL: tuple[tuple[str, ...], ...] = (
    ("building", "roof", "house from above"),
    ("bare land", "bare soil", "sand", "desert"),
    ("road", "paved road"),
    ("vegetation", "trees", "plants"),
    ("water", "pool", "sea"),
)

CLOTHING_EXTRA: dict[str, tuple[str, ...]] = {
    "background": ("background", "backdrop", "other"),
    "skin": ("skin", "bare skin"),
    "hair": ("hair", "head of hair"),
    "pants": ("pants", "trousers"),
    "t-shirt": ("t-shirt", "tee shirt"),
    "sweater": ("sweater", "pullover"),
    "bag": ("bag", "handbag"),
    "shoes": ("shoes", "footwear"),
    "heels": ("heels", "high heels"),
    "sunglasses": ("sunglasses", "shades"),
    "jacket": ("jacket",),
    "coat": ("coat", "overcoat"),
}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "sky": ("sky", "blue sky", "cloudy sky"),
    "grass": ("grass", "lawn", "meadow"),
    "tree": ("tree", "trees"),
    "water": ("water", "body of water"),
    "sea": ("sea", "ocean", "water"),
    "sand": ("sand", "sandy ground"),
    "mountain": ("mountain", "mountains", "hill"),
    "rock": ("rock", "rocks", "stone"),
    "snow": ("snow", "snowy ground"),
    "road": ("road", "asphalt road"),
    "person": ("person", "man", "woman", "human"),
    "building": ("building", "buildings"),
    "floor": ("floor", "floor of a room"),
    "wall": ("wall", "wall of a room"),
    "soil": ("soil", "dirt", "ground"),
    "plant": ("plant", "plants", "green plant"),
    "leaf": ("leaf", "leaves"),
    "window": ("window", "windows", "glass window"),
    "door": ("door", "doorway"),
    "carpet": ("carpet", "rug"),
    "bed": ("bed", "mattress"),
    "background": ("background", "backdrop"),
    "clothing": ("clothing", "clothes"),
    "sofa": ("sofa", "couch"),
    "airplane": ("airplane", "plane"),
    "bicycle": ("bicycle", "bike"),
    "motorcycle": ("motorcycle", "motorbike"),
    "cup": ("cup", "mug"),
    "roof": ("roof", "rooftop"),
}

PROMPTS: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a picture of {}", "the {} in the scene")
"""Sentences that training puts around a word now and then, so that prompt templates work with the model."""

RENAMED_CAMVID = (
    "heavens", "edifice", "lamppost", "street", "footpath", "foliage", "signboard", "barricade", "automobile", "passer-by", "cyclist",
)  # fmt: skip
"""Another name for each CamVid class, none of which training uses: the test of a model that knows things, not spellings."""

PARTS: dict[str, tuple[str, ...]] = {
    "building": ("window", "door", "wall", "brick wall", "stone wall", "roof", "house", "shop", "pillar", "brick", "stairs", "shutter"),
    "buildings": ("window", "door", "wall", "brick wall", "roof", "house", "shop", "pillar", "brick", "stairs"),
    "office building": ("window", "door", "wall", "brick wall", "roof", "house", "shop", "pillar", "brick"),
    "house facade": ("window", "door", "wall", "brick wall", "roof", "house", "shop", "pillar", "brick"),
    "person": ("face", "hand", "hair", "clothing", "jeans", "shirt", "jacket", "trousers", "leg", "skin", "arm", "hat", "dress",
               "sweater", "coat", "cloth", "fabric", "shoe", "skirt", "suit", "tie", "head", "foot", "finger"),
    "pedestrian": ("face", "hand", "hair", "clothing", "jeans", "shirt", "jacket", "trousers", "leg", "skin", "coat", "shoe", "skirt"),
    "people walking": ("face", "hand", "hair", "clothing", "jeans", "shirt", "jacket", "trousers", "leg", "coat", "shoe", "skirt"),
    "bicyclist": ("bicycle", "wheel", "person", "face", "hand", "hair", "clothing", "jeans", "jacket", "trousers", "helmet"),
    "car": ("wheel", "window", "windshield", "tire", "metal", "car grille", "van", "taxi"),
    "vehicle": ("wheel", "window", "windshield", "tire", "metal", "car grille", "van", "taxi"),
    "tree": ("leaf", "branch", "trunk", "tree trunk", "wood", "bush", "plant", "forest", "leaves"),
    "trees": ("leaf", "branch", "trunk", "tree trunk", "wood", "bush", "plant", "forest", "leaves"),
    "vegetation": ("leaf", "branch", "trunk", "tree trunk", "bush", "plant", "forest", "leaves", "grass", "moss"),
    "sky": ("cloud", "clouds"),
    "pavement": ("ground", "floor", "stone", "gravel", "street", "brick", "concrete"),
    "sidewalk": ("ground", "floor", "stone", "gravel", "street", "brick", "concrete"),
    "road": ("ground", "street", "gravel", "asphalt", "concrete"),
    "roadway": ("ground", "street", "gravel", "asphalt", "concrete"),
    "traffic sign": ("pole", "metal"),
    "fence": ("gate", "wall", "metal", "wood", "pole", "railing"),
    "pole": ("metal", "wood", "pillar", "lamp"),
    "background": ("wall", "floor", "paper", "cloth", "fabric", "table", "tablecloth", "curtain", "sky"),
    "backdrop": ("wall", "floor", "paper", "cloth", "fabric", "table", "tablecloth", "curtain", "sky"),
}  # fmt: skip
"""Words that may be right wherever the key is: they are never used as wrong answers beside it."""
