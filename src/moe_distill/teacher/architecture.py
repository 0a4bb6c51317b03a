"""What capture and replay need of a teacher, found once when it is opened."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from moe_distill.models.decoder import Decoder, find_decoder
from moe_distill.models.moe_block import MoeBlock, find_moe_block
from moe_distill.replay.head import HeadDescription


@dataclass(frozen=True)
class Architecture:
    """The parts of a teacher."""

    decoder: Decoder
    moe: MoeBlock | str  # the last layer's, or in words why nothing can be replayed

    @property
    def num_experts(self) -> int:
        """Experts that can be replayed."""
        return 0 if isinstance(self.moe, str) else self.moe.num_experts

    @property
    def head_bytes(self) -> int:
        """Bytes of models/teacher_head, in the teacher's dtype."""
        return 0 if isinstance(self.moe, str) else sum(tensor.nbytes for tensor in self.moe.head.tensors.values())

    def description(self, teacher_fingerprint: str) -> HeadDescription:
        """Of models/teacher_head."""
        if isinstance(self.moe, str):
            return HeadDescription(teacher_fingerprint=teacher_fingerprint, no_replay=self.moe)
        return self.moe.head.description.model_copy(update={"teacher_fingerprint": teacher_fingerprint})


def find_architecture(model: PreTrainedModel) -> Architecture:
    """Find the parts of a teacher; see `find_decoder` for the errors."""
    decoder = find_decoder(model)
    return Architecture(decoder, find_moe_block(model, decoder))
