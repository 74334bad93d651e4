"""What a proof tries: the default policy to test, and the layers of the model at hand that can be put into float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from precscope.advice.proposal import default_policy, propose_policy
from precscope.advice.suspects import further_layers, layers_beyond, suspected_layers
from precscope.advice.wording import quoted
from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.layer_match import match_layers
from precscope.policy import MODEL, Pin, Policy
from precscope.probes.apply_policy import wanted_policies
from precscope.probes.internals.layer_tree import has_named_layers
from precscope.probes.layer_policies import cannot_flip, layer_policies, model_layers, whole_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precscope.advice import Evidence
    from precscope.advice.finding import Finding
    from precscope.probes.replay_batches import ReplayData
    from precscope.probes.replayer import Replayer

__all__ = ["ProofSetup", "proposal_to_test"]

_FOR_FLOAT32 = "mixed_float16"  # what is tested of a run in float32
_MOST_ROUNDS_OF_REFERENCE = 4  # each leaves out one more layer that cannot be flipped


def proposal_to_test(evidence: Evidence, findings: Sequence[Finding], default: str | None) -> Policy:
    """Return what is to be tested: what the findings advise, under the default policy that is asked for."""
    if default is None:
        proposal = propose_policy(evidence, findings)
        return propose_policy(evidence, findings, default=_FOR_FLOAT32) if proposal.default == "float32" else proposal
    if _narrow_format(default) is None:
        raise PrecScopeError(
            f"Cannot test the default policy {default!r}: expected one that computes in 16 bits, mixed_float16 or "
            "mixed_bfloat16. float32 is what it is compared with."
        )
    return propose_policy(evidence, findings, default=default)


def _narrow_format(policy: str) -> str | None:
    """Return the 16-bit format that a dtype policy computes in, by its name; None of any other."""
    computes_in = policy.removeprefix("mixed_")
    return computes_in if computes_in in FORMATS and FORMATS[computes_in].bits == 16 else None


@dataclass
class ProofSetup:
    """The model at hand beside the run: which layers can be tried, and the policies of a set of them.

    Names are the ids of the run; the model may have other numbers in them.
    """

    model: Any
    proposal: Policy
    findings: Sequence[Finding]
    evidence: Evidence

    def __post_init__(self) -> None:
        self._layers = model_layers(self.model)
        classes = {name: type(layer).__name__ for name, layer in self._layers.items() if name != MODEL}
        unpinned = replace(self.proposal, pins=())
        self._here = {MODEL: MODEL, **match_layers(unpinned, classes)}
        self._base = wanted_policies(self.model, unpinned)[0]
        self.in_float32: Mapping[str, str] = {}
        self.left_out: dict[str, str] = {}
        with layer_policies(self.model, self._base):
            self.suspects = self._tryable(self._suspected())
            further = further_layers(self.evidence, self.findings)
            # The policy of a subclassed model casts what is fed to it; that of any other does nothing.
            own = () if has_named_layers(self.model) else (MODEL,)
            self.others = self._tryable([name for name in (*further, *own) if name not in self.suspects])

    @property
    def is_trained_in_16_bits(self) -> bool:
        """Whether the run's layers computed in 16 bits; if not, what is tested is what none of them did yet."""
        return _narrow_format(default_policy(self.evidence)) is not None

    def policies(self, names: frozenset[str]) -> Mapping[str, str]:
        """Return the policies of all layers, by id in the model, with `names` in float32."""
        pins = tuple(Pin(name) for name in sorted(names))
        return wanted_policies(self.model, replace(self.proposal, pins=pins))[0]

    def as_trained(self) -> Mapping[str, str]:
        """Return the policies that the run was trained under; of a run in float32, plainly those to be tested."""
        default = default_policy(self.evidence) if self.is_trained_in_16_bits else self.proposal.default
        return wanted_policies(self.model, replace(self.proposal, pins=(), default=default))[0]

    def in_bfloat16(self) -> Mapping[str, str]:
        """Return the policies of mixed_bfloat16 with nothing pinned."""
        return wanted_policies(self.model, replace(self.proposal, pins=(), default="mixed_bfloat16"))[0]

    def set_reference(self, replayer: Replayer, data: ReplayData) -> None:
        """Replay in float32; what cannot follow keeps its policy and is left out."""
        policies = self._base | whole_model(self.model, "float32")
        for _ in range(_MOST_ROUNDS_OF_REFERENCE):
            known = set(replayer.unflipped)
            try:
                replayer.set_reference(data.batches, policies)
                self.in_float32 = policies
                break
            except PrecScopeError as error:
                raise self._with_what_stays(error, replayer) from None
            except Exception:
                failed = set(replayer.unflipped) - known
                if not failed:
                    raise
                policies = {name: policy for name, policy in policies.items() if name not in failed}
                policies |= {name: self._base[name] for name in failed if name in self._base}
        self.note_unflipped(replayer)

    def _with_what_stays(self, error: PrecScopeError, replayer: Replayer) -> PrecScopeError:
        """Name the layers that compute in 16 bits in the reference too: they may be what is wrong with it."""
        stays = self.left_out | replayer.unflipped
        if not stays:
            return error
        reasons = "; ".join(f"{quoted(name)}: {reason}" for name, reason in list(stays.items())[:3])
        return PrecScopeError(f"{error} Layers that cannot be flipped to float32 may be the cause: {reasons}.")

    def note_unflipped(self, replayer: Replayer) -> None:
        """Leave out layers whose outputs showed that they do not follow their policy."""
        there = {here: name for name, here in self._here.items()}
        for here, reason in replayer.unflipped.items():
            name = there.get(here, here)
            if name in (*self.suspects, *self.others):
                self.left_out[name] = reason
                self.suspects = tuple(other for other in self.suspects if other != name)
                self.others = tuple(other for other in self.others if other != name)

    def _suspected(self) -> tuple[str, ...]:
        """Return the layers to begin with: those that the findings name, and what no layer computed in before."""
        narrow = _narrow_format(self.proposal.default)
        beyond = () if self.is_trained_in_16_bits or narrow is None else layers_beyond(self.evidence, narrow)
        return tuple(dict.fromkeys((*suspected_layers(self.findings), *beyond)))

    def _tryable(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return those that compute in 16 bits and can be flipped; note why others cannot."""
        found = []
        for name in names:
            layer = self._layers[self._here[name]]
            if layer.compute_dtype not in FORMATS or FORMATS[layer.compute_dtype].bits != 16:
                continue
            reason = cannot_flip(layer)
            if reason is None:
                found.append(name)
            else:
                self.left_out[name] = reason
        return tuple(found)
