"""The open-vocabulary splits of COCO (Bansal et al., 2018: 48 base and 17 novel categories; 15 are left out) and LVIS."""

from __future__ import annotations

COCO_BASE: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 7: "train", 8: "truck", 9: "boat", 15: "bench", 16: "bird",
    19: "horse", 20: "sheep", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 31: "handbag", 33: "suitcase",
    34: "frisbee", 35: "skis", 38: "kite", 42: "surfboard", 44: "bottle", 48: "fork", 50: "spoon", 51: "bowl",
    52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 59: "pizza", 60: "donut",
    62: "chair", 65: "bed", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 78: "microwave",
    79: "oven", 80: "toaster", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 90: "toothbrush",
}  # fmt: skip
COCO_NOVEL: dict[int, str] = {
    5: "airplane", 6: "bus", 17: "cat", 18: "dog", 21: "cow", 22: "elephant", 28: "umbrella", 32: "tie",
    36: "snowboard", 41: "skateboard", 47: "cup", 49: "knife", 61: "cake", 63: "couch", 76: "keyboard", 81: "sink",
    87: "scissors",
}  # fmt: skip
# The 15 that neither have: of COCO's 80, what the open-vocabulary split leaves out.
COCO_LEFT_OUT = frozenset(
    {
        "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove",
        "tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone", "teddy bear", "hair drier",
    }
)  # fmt: skip
COCO_NAMES = frozenset({*COCO_BASE.values(), *COCO_NOVEL.values(), *COCO_LEFT_OUT})

# LVIS v1 (Gupta et al., 2019): the 337 rare ones of its 1,203 categories, novel in the open-vocabulary protocol; 866 are base.
LVIS_V1_COUNT = 1203
LVIS_V1_RARE = frozenset({
    13, 14, 17, 20, 21, 30, 31, 38, 39, 40, 42, 49, 51, 52, 63, 69, 71, 78, 82, 85, 93, 105, 106, 113, 117, 119,
    123, 126, 130, 131, 136, 140, 142, 144, 147, 151, 155, 159, 161, 164, 167, 172, 179, 182, 196, 202, 209, 210,
    214, 215, 222, 223, 231, 233, 234, 236, 237, 238, 240, 244, 245, 247, 250, 251, 257, 258, 262, 265, 266, 269,
    270, 275, 281, 282, 287, 291, 292, 294, 295, 300, 301, 302, 304, 307, 310, 313, 316, 317, 321, 323, 326, 331,
    333, 348, 349, 352, 353, 354, 355, 357, 362, 364, 365, 366, 368, 374, 376, 381, 382, 388, 389, 397, 398, 400,
    405, 407, 410, 413, 414, 416, 420, 426, 427, 428, 431, 432, 435, 439, 446, 449, 456, 458, 467, 478, 479, 480,
    481, 482, 486, 488, 491, 492, 503, 506, 508, 509, 513, 516, 518, 527, 532, 535, 538, 541, 542, 543, 545, 551,
    557, 560, 561, 567, 568, 571, 572, 574, 575, 577, 580, 582, 583, 585, 594, 597, 599, 602, 603, 606, 610, 616,
    618, 619, 620, 625, 632, 634, 635, 638, 640, 646, 648, 651, 657, 662, 663, 664, 665, 671, 672, 674, 678, 686,
    688, 690, 691, 693, 702, 710, 712, 714, 722, 727, 729, 730, 733, 743, 752, 754, 755, 758, 759, 764, 769, 772,
    778, 779, 783, 784, 785, 787, 788, 792, 796, 803, 805, 808, 809, 810, 812, 815, 820, 822, 823, 824, 829, 831,
    849, 850, 851, 852, 853, 855, 856, 858, 859, 862, 864, 869, 873, 883, 886, 887, 890, 891, 892, 894, 902, 905,
    908, 913, 914, 917, 918, 920, 925, 931, 937, 938, 939, 941, 942, 944, 945, 952, 956, 958, 969, 972, 974, 975,
    983, 985, 987, 990, 991, 992, 994, 998, 1003, 1005, 1010, 1012, 1015, 1016, 1028, 1029, 1030, 1031, 1032, 1047,
    1048, 1049, 1053, 1054, 1057, 1058, 1075, 1080, 1084, 1116, 1118, 1119, 1124, 1126, 1129, 1135, 1144, 1145,
    1146, 1148, 1150, 1157, 1158, 1159, 1165, 1167, 1193,
})  # fmt: skip
