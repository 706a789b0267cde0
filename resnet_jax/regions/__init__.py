"""Boxes and regions of images: pure array functions of static shape, for any detector.

A box is (x1, y1, x2, y2) in pixels. Coordinates are continuous: the pixel in column i covers
[i, i + 1], so a box is x2 - x1 wide, and the box of the whole image is (0, 0, width, height).
`plus_one=True` is the convention of the paper's code instead: coordinates are indices of pixels,
both ends belong to the box, and it is x2 - x1 + 1 wide.

Sets of boxes are padded to a fixed number and come with a mask. Axes before those that a function
names are batch axes. Nothing here is random without a key, and no gradient needs a scatter, so
results repeat bit for bit.
"""
