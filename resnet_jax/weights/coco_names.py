"""The names of COCO's categories 1 to 90, as torchvision's detectors number them."""

# Ten of the numbers were never used; networks have outputs for them all the same.
UNUSED = 'N/A'
_USED = {
    1: 'person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, '
       'fire hydrant',
    13: 'stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, '
        'zebra, giraffe',
    27: 'backpack, umbrella',
    31: 'handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, '
        'baseball glove, skateboard, surfboard, tennis racket, bottle',
    46: 'wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, '
        'carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed',
    67: 'dining table',
    70: 'toilet',
    72: 'tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, '
        'refrigerator',
    84: 'book, clock, vase, scissors, teddy bear, hair drier, toothbrush',
}
_BY_ID = {first + i: name for first, names in _USED.items()
          for i, name in enumerate(names.split(', '))}
CATEGORIES = tuple(_BY_ID.get(number, UNUSED) for number in range(1, 91))
