"""The ten corruptions of ImageNet-C-bar.

Source of process and constants: facebookresearch/augmentation-corruption, imagenet_c_bar/corrupt.py (the lines are
given at each function), and imagenet_c_bar/imagenet_c_bar.csv for what the severities 1 to 5 mean. Lengths there are in
parts of the side of a square image of 224 pixels; of another image the shorter side is taken. Ranges are those of
uniform random numbers.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from analysis.robustness.corruptions.arithmetic import (
    SAMPLE_BITS,
    Array,
    Pixels,
    clamped,
    exact_levels,
    gaussian_weights,
    packed,
    resampled,
    truncated,
)


def single_frequency_greyscale(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add a plane wave in grey (lines 24-51).

    Strength 1, 1.5, 2, 4.5, 5 times 19.6 levels. One of the two frequencies, in radians for each pixel, is drawn from
    -pi to pi, the other one is at most as large.
    """
    strength = 19.6 * (1, 1.5, 2, 4.5, 5)[severity - 1]
    larger = rng.uniform(-np.pi, np.pi)
    frequencies = rng.permutation([larger, rng.uniform(-abs(larger), abs(larger))])
    y, x = _places(image)
    wave = np.sin(x * frequencies[0] + y * frequencies[1] + rng.uniform(0, 2 * np.pi))
    return truncated(image + strength * wave[..., None])


def cocentric_sine_waves(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add rings of rising grey around a point, wavy along their way (lines 53-93).

    Strength 3, 5, 8, 9, 10 times 12.8 levels. Centre anywhere, 0 to 10 waves around, waves and rings of up to a tenth
    of the side.
    """
    strength = 12.8 * (3, 5, 8, 9, 10)[severity - 1]
    side, (y, x) = _side(image), _places(image)
    column, row = rng.uniform(0, image.shape[1]), rng.uniform(0, image.shape[0])
    waves, height, width = rng.uniform(0, 10), rng.uniform(0, side / 10), rng.uniform(0, side / 10)
    distance = np.hypot(x - column, y - row) + np.sin(np.arctan2(x - column, y - row) * waves) * height
    return truncated(image + strength * (np.mod(distance, width) / width - 0.5)[..., None])


def plasma_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Mix with coloured waves of displaced waves (lines 95-132).

    Strength 4.75, 7, 8.5, 9.25, 10 times 6.4 levels, taken off the image's share of 255. Time 0 to 6 pi, 4 to 6
    iterations, sharpness .5 to 1, scale .075 to .2 of the side.
    """
    strength = 6.4 * (4.75, 7, 8.5, 9.25, 10)[severity - 1]
    time, iterations = rng.uniform(0, 6 * np.pi), int(rng.integers(4, 7))
    sharpness, scale = rng.uniform(0.5, 1), rng.uniform(0.075, 0.2) * _side(image)
    y, x = (np.broadcast_to(place / scale, image.shape[:2]) for place in _places(image))
    frequency, slowness, fineness = 1.0, 1.0, 1.0
    for _ in range(iterations):
        first = np.cos(y * frequency + time / slowness) / fineness
        second = np.sin(x * frequency + time / slowness) / fineness
        x, y = x + first - 0.3 * second, y + second + 0.3 * first
        frequency, slowness, fineness = frequency * 1.93, slowness * 1.15, fineness * (2.25 - sharpness)
    waves = np.stack([np.sin(x - time), np.sin((x + y + np.sin(time)) * 0.5), np.sin(y + time)], axis=-1)
    return truncated((1 - strength / 255) * image + strength * waves)


def sparkles(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add five white stars of 50 to 199 rays (lines 212-260).

    Radius 1, 2, 3, 5, 6 hundredths of the side; rays of at least a pixel.
    """
    radius = 0.01 * (1, 2, 3, 5, 6)[severity - 1] * _side(image)
    levels = image.astype(np.float64)
    for _ in range(5):
        centre = rng.uniform(0, image.shape[0]), rng.uniform(0, image.shape[1])
        lengths = np.maximum(_ray_lengths(radius, rng), 1)
        light = np.clip(_star(image, centre, lengths, 1.0), 0, 1)[..., None]
        levels += light * (255 - levels)
    return truncated(levels)


def inverse_sparkles(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """White outside of a star (lines 262-312).

    Radius a quarter of the side, centre in the middle half, 50 to 199 rays. The edge is sharper with the severity:
    exponent 1, 2, 4, 9, 10 times .13.
    """
    exponent = 0.13 * (1, 2, 4, 9, 10)[severity - 1]
    centre = rng.uniform(0.25, 0.75) * image.shape[0], rng.uniform(0.25, 0.75) * image.shape[1]
    seen = np.clip(_star(image, centre, _ray_lengths(0.25 * _side(image), rng), exponent), 0, 1)[..., None]
    return truncated(255 + seen * (image - 255.0))


def perlin_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Mix with Perlin turbulence of five octaves (lines 314-344, and utils/perlin_noise.py).

    Share 4.6, 5.2, 5.8, 7.6, 8.8 times .05. The first octave has 7 cells along the side.
    """
    share = 0.05 * (4.6, 5.2, 5.8, 7.6, 8.8)[severity - 1]
    cell = 32 * _side(image) / 224
    table, angles = rng.permutation(256), rng.integers(-256, 256, (256, 2)) / 256
    gradients = angles / np.maximum(np.sqrt((angles**2).sum(axis=1, keepdims=True)), 1e-9)
    y, x = (place / cell for place in _places(image))
    turbulence = sum(np.abs(_perlin(y * octave, x * octave, table, gradients)) / octave for octave in (1, 2, 4, 8, 16))
    return truncated((1 - share) * image + 255 * share * np.minimum(0.5 * turbulence + 0.5, 1)[..., None])


def blue_noise_sample(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Set pixels to black where blue noise is below a threshold (lines 637-675).

    Threshold .8, 1.6, 2.4, 4, 5.6 times .3, less 2.5, in standard deviations.
    """
    threshold = 0.3 * (0.8, 1.6, 2.4, 4, 5.6)[severity - 1] - 2.5
    distance = np.sqrt(_squared_frequencies(image))
    return image * (_spectral_noise(distance, rng) > threshold)[..., None].astype(np.uint8)


def brownish_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add noise to each channel that falls with the square of the frequency (lines 394-433).

    Standard deviation 1, 2, 3, 4, 5 times 6.4 levels.
    """
    strength = 6.4 * severity
    fall = 1 / (_squared_frequencies(image) + 1)
    return truncated(image + strength * np.stack([_spectral_noise(fall, rng) for _ in range(3)], axis=-1))


def checkerboard_cutout(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Grey squares of a turned checkerboard (lines 610-634).

    Of one colour's squares the share .2, .3, .4, .5, .6 is set to 128. Sides of .1 to .25 of the image's, any angle.
    """
    share = 0.1 * (severity + 1)
    angle, side = rng.uniform(0, 2 * np.pi), _side(image)
    square = max(rng.uniform(0.1, 0.25) * side, 1.0)
    y, x = _places(image)
    down = (np.cos(angle) * y + np.sin(angle) * x) / square
    across = (np.cos(angle) * x - np.sin(angle) * y) / square
    # Rows and columns on either side of the origin meet, as cutting off the decimals does in the released code.
    row, column = down.astype(np.int64), across.astype(np.int64)
    reach = int(np.ceil(np.hypot(image.shape[0], image.shape[1]) / square)) + 1
    chosen = rng.random((2 * reach + 1, 2 * reach + 1)) < share
    grey = (np.mod(down, 2).astype(np.int64) == np.mod(across, 2).astype(np.int64)) & chosen[row, column]
    return np.where(grey[..., None], np.uint8(128), image)


def caustic_refraction(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Look through water whose surface has the slopes of a pattern of light (lines 677-759).

    Displacement .5 of the side, light 2, both times .235, .32, .49, .66, .915; index of refraction 4. Time .5 to 2, the
    pattern repeats after .75 to 1.25 of the side. Nothing is seen outside of the image.
    """
    amount = 0.1 * (2.35, 3.2, 4.9, 6.6, 9.15)[severity - 1]
    time, size = rng.uniform(0.5, 2), rng.uniform(0.75, 1.25) * _side(image)
    light = _softened(_caustics(image, time, size))
    outside = np.pad(light, 1)
    slope_down = outside[2:, 1:-1] - outside[:-2, 1:-1]
    slope_across = outside[1:-1, 2:] - outside[1:-1, :-2]
    tilt = 1 / np.sqrt(slope_down**2 + slope_across**2 + 1)  # cosine of the surface's angle
    sine = np.sqrt(np.maximum(1 - tilt**2, 0))
    # Snell's law; a surface that is almost level refracts nothing.
    bend = np.where(tilt < 1 - 1e-3, (np.sqrt(1 - sine**2 / 16) - tilt / 4) * tilt, 0) * (amount * 0.5 * _side(image))
    rows, columns = (np.round(slope * bend, 3) for slope in (slope_down, slope_across))
    y, x = _places(image)
    seen = _sampled_in_black(image, y + rows, x + columns)
    return truncated(seen + (255 * 2 * amount) * (slope_down - slope_across)[..., None])


def _places(image: Pixels) -> tuple[Array, Array]:
    """Rows (H, 1) and columns (1, W) as floats."""
    height, width = image.shape[:2]
    return np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None]


def _side(image: Pixels) -> int:
    return min(image.shape[:2])


def _ray_lengths(radius: float, rng: Generator) -> Array:
    """Lengths of 50 to 199 rays, with a standard deviation of a quarter."""
    return radius + 0.25 * radius * rng.standard_normal(int(rng.integers(50, 200)))


def _star(image: Pixels, centre: tuple[float, float], lengths: Array, exponent: float) -> Array:
    """Light (H, W) of a star: falls with the distance, in units of the interpolated ray, to twice the exponent."""
    y, x = _places(image)
    down, across = y - centre[0], x - centre[1]
    turn = (np.arctan2(across, down) + np.pi) / (2 * np.pi) * len(lengths)
    ray = np.floor(turn).astype(np.int64)
    beside = turn - ray
    first, second = lengths[ray % len(lengths)], lengths[(ray + 1) % len(lengths)]
    length = first + beside * (second - first)
    return (1 - (beside - 0.5) ** 2) * (length**2 / (down**2 + across**2 + 1e-4)) ** exponent


def _perlin(y: Array, x: Array, table: Array, gradients: Array) -> Array:
    """Perlin noise at rows (H, 1) and columns (1, W), from a permutation (256,) and gradients (256, 2)."""
    row, column = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, across = y - row, x - column

    def corner(below: int, right: int) -> Array:
        picked = gradients[table[(table[(row + below) & 255] + column + right) & 255]]
        return (down - below) * picked[..., 0] + (across - right) * picked[..., 1]

    smooth_down, smooth_across = down**2 * (3 - 2 * down), across**2 * (3 - 2 * across)
    left = corner(0, 0) + smooth_down * (corner(1, 0) - corner(0, 0))
    right = corner(0, 1) + smooth_down * (corner(1, 1) - corner(0, 1))
    return 1.5 * (left + smooth_across * (right - left))


def _squared_frequencies(image: Pixels) -> Array:
    """Squared distances (H, W) from the middle of the spectrum, in periods along the shorter side."""
    height, width = image.shape[:2]
    y, x = _places(image)
    return ((y - height / 2) * (_side(image) / height)) ** 2 + ((x - width / 2) * (_side(image) / width)) ** 2


def _spectral_noise(amplitude: Array, rng: Generator) -> Array:
    """Noise (H, W) of standard deviation 1 with the amplitudes of a centred spectrum (H, W) and random phases.

    As in the released code, the phases are the same on either side of the middle, and the real part is taken.
    """
    height, width = amplitude.shape
    phases = rng.uniform(0, 2 * np.pi, height * width)
    phases[(len(phases) + 1) // 2 :] = phases[: len(phases) // 2][::-1]
    phases = phases.reshape(height, width)
    spectrum = amplitude * (np.cos(phases) + 1j * np.sin(phases))
    noise = np.real(np.fft.ifft2(np.roll(spectrum, (height // 2, width // 2), axis=(0, 1))))
    return noise / max(float(noise.std()), 1e-12)


def _caustics(image: Pixels, time: float, size: float) -> Array:
    """Pattern of light (H, W) in 0-1 on the ground of moving water."""
    y, x = (np.mod(place / size, 1) * (2 * np.pi) - 250 for place in _places(image))
    down, across = y, x
    total: Array = np.ones(image.shape[:2])
    for step in range(1, 6):
        moment = time * (1 - 3.5 / step)
        down, across = (
            y + np.cos(moment - down) + np.sin(moment + across),
            x + np.sin(moment - across) + np.cos(moment + down),
        )
        sine, cosine = np.sin(down + moment), np.cos(across + moment)
        total += 200 * np.abs(sine * cosine) / np.hypot(y * cosine, x * sine)
    return np.clip(np.abs(1.17 - (total / 5) ** 1.4) ** 8, 0, 1)


def _softened(light: Array) -> Array:
    """Light (H, W) after a Gaussian of one pixel, with mirrored edges."""
    weights = gaussian_weights(1.0, 4.0, 20)
    return cv2.sepFilter2D(light, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REFLECT) * 2.0**-40


def _sampled_in_black(image: Pixels, rows: Array, columns: Array) -> Array:
    """Bilinear samples (H, W, 3) in levels, with black all around the image."""
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    return exact_levels(resampled(packed(framed), rows + 1, columns + 1, clamped), SAMPLE_BITS)
