"""Learns a linear model of positive numbers, one noisy sample at a time: Bayesian linear regression.

Exists so that step times and transfer times are learned by one small thing whose behaviour is tested: it
starts from a prior, trusts samples by how much they tell, and is thrown neither by outliers nor by a lasting
change. It must not know what the numbers mean.

The prior is a guess of the weights whose common scale is unknown and whose shape is better known: the first
sample sets the scale, and later ones bend the shape where they lie, and near it (``Prior.kinship``). An
update is that of a Kalman filter, in O(weights^2) operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Features = Sequence[tuple[int, float]]
"""A sample's features that are not zero: (index of the weight, value)."""

SCALE_SD = 0.5
"""Relative uncertainty of the common scale once a sample has set it: that sample may itself have been odd."""

CLIP_SDS = 2.0
"""A sample further off than so many standard deviations counts as one that is just so far off."""

SURPRISES = 6
"""So many samples in a row that are too far off to the same side are no outliers: the device has changed."""

LEAST_GAIN = 1 / 64
"""However sure, a new sample moves the prediction at its own place by this share of the difference."""

RELATIVE_NOISE = (0.02, 0.5)
"""Least and most that a sample is believed to vary by, as a share of the prediction."""

NOISE_GAIN = 1 / 32
"""How fast the belief about the noise follows what is seen."""

SETTLED = 256
"""From so many samples on, one that lies within the noise teaches nothing and is only counted: most do."""


class Prior(NamedTuple):
    """What is believed before the first sample.

    ``weights``: the guess, none negative. ``own_sd``: for each, how far its ratio to the others may be off,
    as a share of it. ``floor_sd``: for each, uncertainty where the guess is 0, in the weight's unit.
    ``kinship``: for two weights, from 0 to 1, how much of ``own_sd`` they have in common. ``least``,
    ``most``: no weight gets smaller or larger. ``scale_sd``: uncertainty of a scale that all weights have
    in common, as a share, once the first sample has set it; 0: they have none in common.
    """

    weights: tuple[float, ...]
    own_sd: tuple[float, ...]
    floor_sd: tuple[float, ...]
    kinship: tuple[tuple[float, ...], ...]
    least: float = 0.0
    most: float = math.inf
    scale_sd: float = SCALE_SD


class Regression:
    """``predict(features)`` after any number of ``learn(features, measured)``. Memory: weights squared.

    ``samples``: how many were learned from. ``noise``: standard deviation of a sample as a share of the
    prediction, as seen lately.
    """

    def __init__(self, prior: Prior, *, absolute_noise: float) -> None:
        self._prior = prior
        self._absolute_noise = absolute_noise
        self.samples = 0
        self.noise = 0.1
        self.weights = list(prior.weights)
        """The weights now, always in this list; none is negative, or below the prior's ``least``."""
        self._surprises = 0
        self._covariance: list[list[float]] = []
        self._doubt()

    def predict(self, features: Features) -> float:
        """Return the expected number."""
        weights = self.weights
        predicted = 0.0
        for index, value in features:
            predicted += weights[index] * value
        return predicted

    def sd(self, features: Features) -> float:
        """Return how far ``predict`` may be off (one standard deviation), the samples' own noise left out."""
        covariance = self._covariance
        variance = sum(
            value * other_value * covariance[index][other]
            for index, value in features
            for other, other_value in features
        )
        return math.sqrt(max(0.0, variance))

    def learn(self, features: Features, measured: float) -> None:
        """Take a sample in. What is not a positive finite number is left out."""
        if not 0 < measured < math.inf:
            return
        predicted = self.predict(features)
        self.samples += 1
        if self.samples == 1 and self._prior.scale_sd:
            self._start_anew(measured, predicted)
            return
        if self.samples > SETTLED and abs(measured - predicted) < self.noise * predicted:
            self._note_noise(measured - predicted, predicted, 0.0)
            return
        gains = [sum(row[index] * value for index, value in features) for row in self._covariance]
        variance = sum(gains[index] * value for index, value in features)
        if variance <= 0:
            return
        noise = self._noise_variance(predicted)
        error = measured - predicted
        limit = CLIP_SDS * math.sqrt(variance + noise)
        clipped = max(-limit, min(limit, error))
        if self._has_changed(error, clipped):
            self._start_anew(measured, predicted)
            return
        trust = variance / (variance + noise)
        step = max(trust, LEAST_GAIN) * clipped / variance
        weights, least, most = self.weights, self._prior.least, self._prior.most
        for index, gain in enumerate(gains):
            weights[index] = min(most, max(least, weights[index] + gain * step))
        if trust > LEAST_GAIN:
            self._shrink(gains, trust / variance)
        self._note_noise(clipped, predicted, variance)

    def _noise_variance(self, predicted: float) -> float:
        relative = self.noise * predicted
        return relative * relative + self._absolute_noise * self._absolute_noise

    def _has_changed(self, error: float, clipped: float) -> bool:
        """Whether samples have been too far off to one side for so long that the prior's doubt is due
        again."""
        if error == clipped:
            self._surprises = 0
            return False
        side = 1 if error > 0 else -1
        self._surprises = self._surprises + side if self._surprises * side > 0 else side
        return abs(self._surprises) >= SURPRISES

    def _shrink(self, gains: list[float], factor: float) -> None:
        for row, gain in zip(self._covariance, gains, strict=True):
            scaled = gain * factor
            if scaled:
                row[:] = [value - scaled * other for value, other in zip(row, gains, strict=True)]

    def _note_noise(self, error: float, predicted: float, variance: float) -> None:
        if predicted <= 0 or variance > predicted * predicted:
            return  # the prediction was a guess: its error says nothing of the samples
        share = max(0.0, error * error - variance) / (predicted * predicted)
        least, most = RELATIVE_NOISE
        square = self.noise * self.noise * (1 - NOISE_GAIN) + share * NOISE_GAIN
        self.noise = min(most, max(least, math.sqrt(square)))

    def _start_anew(self, measured: float, predicted: float) -> None:
        """Fit the common scale to one sample, and doubt the shape as the prior was doubted."""
        if predicted > 0 and self._prior.scale_sd:
            scale, least, most = measured / predicted, self._prior.least, self._prior.most
            self.weights[:] = [min(most, max(least, weight * scale)) for weight in self.weights]
        self._surprises = 0
        self._doubt()

    def _doubt(self) -> None:
        prior, weights = self._prior, self.weights
        self._covariance = [
            [
                weight * other * (prior.scale_sd**2 + prior.kinship[i][j] * prior.own_sd[i] * prior.own_sd[j])
                + (prior.floor_sd[i] ** 2 if i == j else 0.0)
                for j, other in enumerate(weights)
            ]
            for i, weight in enumerate(weights)
        ]
