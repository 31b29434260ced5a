"""Segment two photographs with the model inside the package.

    python examples/portraits.py demo

Both photographs are in the public domain and come with other packages: scikit-image's ``astronaut``
(NASA) and matplotlib's ``grace_hopper.jpg`` (U.S. Navy).
"""

import sys
from pathlib import Path

import matplotlib.cbook
import skimage

import segformer


def main(folder: str) -> None:
    astronaut = Path(skimage.__file__).parent / "data" / "astronaut.png"
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    # The model was trained on people seen from head to foot. In portraits people are larger, so the
    # images are also segmented at smaller sizes.
    predictor = segformer.Predictor(short_side=320, scales=(0.5, 0.75, 1.0))
    for prediction in predictor.stream([astronaut, Path(hopper)]):
        for path in prediction.save(folder):
            print(path)
        fractions = prediction.class_fractions.items()
        print("  " + ", ".join(f"{name} {fraction:.0%}" for name, fraction in fractions))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
