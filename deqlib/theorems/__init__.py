"""The theorems of the book as objects that can be checked and broken.

`THEOREMS` maps each label to its theorem, in the order of the book. The labels are the same as
those of the theorem environments in the chapters; a test keeps the two sets equal. `FINDINGS` holds
what the book states without a proof: laws to leading order and evidence.
"""

from __future__ import annotations

from typing import Any

from deqlib.theorems.adaptive_descent import AdaptiveDescent
from deqlib.theorems.any_step import AnyStep
from deqlib.theorems.approximate_backward import ApproximateBackward
from deqlib.theorems.base import Hypothesis, Kind, Measurement, Theorem, Verdict, verify
from deqlib.theorems.conservation_law import ConservationLaw
from deqlib.theorems.conservation_law_complete import ConservationLawComplete
from deqlib.theorems.descent_rate import DescentRate
from deqlib.theorems.findings import FINDINGS, Finding
from deqlib.theorems.flow_rate import FlowRate
from deqlib.theorems.grassmannian_flow import GrassmannianFlow
from deqlib.theorems.implicit_gradient import ImplicitGradient
from deqlib.theorems.linear_gradient import LinearGradient
from deqlib.theorems.noise_ball import NoiseBall
from deqlib.theorems.one_point_monotonicity import OnePointMonotonicity
from deqlib.theorems.outer_link import OuterLink
from deqlib.theorems.picard_rate import PicardRate
from deqlib.theorems.picard_safe import PicardSafe
from deqlib.theorems.positive_adjoint import PositiveAdjoint
from deqlib.theorems.radius_drift import RadiusDrift
from deqlib.theorems.readout import Readout
from deqlib.theorems.secant_identity import SecantIdentity
from deqlib.theorems.single_index_gradient import SingleIndexGradient
from deqlib.theorems.single_index_rate import SingleIndexRate
from deqlib.theorems.sphere_limit import SphereLimit
from deqlib.theorems.stable_branches import StableBranches
from deqlib.theorems.unique_equilibrium import UniqueEquilibrium
from deqlib.theorems.vector_local import VectorLocal
from deqlib.theorems.well_conditioned import WellConditioned

THEOREMS: dict[str, Theorem[Any]] = {
    theorem.label: theorem
    for theorem in (
        PicardRate(),
        ImplicitGradient(),
        LinearGradient(),
        ConservationLaw(),
        ConservationLawComplete(),
        WellConditioned(),
        SphereLimit(),
        PicardSafe(),
        FlowRate(),
        DescentRate(),
        AdaptiveDescent(),
        AnyStep(),
        ApproximateBackward(),
        GrassmannianFlow(),
        Readout(),
        UniqueEquilibrium(),
        SingleIndexGradient(),
        SecantIdentity(),
        OnePointMonotonicity(),
        PositiveAdjoint(),
        SingleIndexRate(),
        StableBranches(),
        VectorLocal(),
        RadiusDrift(),
        OuterLink(),
        NoiseBall(),
    )
}

__all__ = [
    "FINDINGS",
    "THEOREMS",
    "Finding",
    "Hypothesis",
    "Kind",
    "Measurement",
    "Theorem",
    "Verdict",
    "verify",
]
