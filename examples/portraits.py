"""The main job on two real photographs, with the model that ships inside the package.

    python examples/portraits.py demo

Both are public-domain portraits by NASA and the U.S. Navy that other packages carry:
scikit-image's ``astronaut`` and matplotlib's ``grace_hopper.jpg``.
"""

import sys
from pathlib import Path

import matplotlib.cbook
import skimage

import segformer


def main(folder: str) -> None:
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    astronaut = Path(skimage.__file__).parent / "data" / "astronaut.png"
    # Portraits are closer than the full-length people that the model learnt on: show it smaller too
    predictor = segformer.Predictor(scales=(0.5, 0.75, 1.0))
    for prediction in predictor.stream([astronaut, Path(hopper)]):
        for path in prediction.save(folder):
            print(path)
        print(
            "  "
            + ", ".join(f"{name} {share:.0%}" for name, share in prediction.class_fractions.items())
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
