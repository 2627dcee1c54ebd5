"""The ``laion_clap`` package as a CLAP's towers, for a cross-check with the default towers.

Imported only when such towers are built. Its import and its constructor fetch three tokenizers and
RoBERTa's weights from the Hub, and without a network they try for minutes; here nothing is fetched:
the checkpoint holds RoBERTa, and the tokenizer is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError, did_you_mean
from zoo.rewards.clap_text import ClapTokenizer, refuse_names

AUDIO_MODELS = ("HTSAT-tiny", "HTSAT-base")
_ROBERTA = {
    "vocab_size": 50_265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_NOT_IN_PACKAGE = (  # in released files, not in current versions of RoBERTa
    "text_branch.embeddings.position_ids"
)


@dataclass(frozen=True)
class LaionFile:
    """The tensors of a LAION .pt file, by their names there."""

    name: str
    tensors: Mapping[str, Tensor] = field(hash=False, repr=False)


class LaionClapTowers(nn.Module):
    """``ClapTowers`` around ``laion_clap.CLAP_Module`` (fusion off), in eval mode, float32 only.

    Args:
        pretrained: a LAION file that was read; in a configuration also its path, which
            ``zoo.importers.pretrained_clap.with_files`` reads. Without it the weights are random.
        audio_model: of ``AUDIO_MODELS``.
        tokenizer, tokenizer_bytes, max_tokens, long_texts: as ``TransformersClapTowers`` has them.
        text_config: settings of ``transformers.RobertaConfig`` that differ from roberta-base (its
            width stays 768).

    Raises ``UserError`` for an unknown name, a package that is missing, or tensors that do not
    fit.
    """

    differentiable = True
    sample_rate_hz = 48_000
    window_samples = 480_000

    def __init__(
        self,
        pretrained: LaionFile | None = None,
        audio_model: str = "HTSAT-base",
        tokenizer: bytes | str | None = None,
        tokenizer_bytes: int = 0,
        max_tokens: int = 77,
        long_texts: str = "refuse",
        text_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if audio_model not in AUDIO_MODELS:
            raise UserError(
                f"unknown audio_model {audio_model!r}; {did_you_mean(audio_model, AUDIO_MODELS)}"
            )
        refuse_names(pretrained, tokenizer)
        content = tokenizer if isinstance(tokenizer, bytes) else tokenizer_bytes
        sizes = {**_ROBERTA, **(text_config or {})}
        self.package = package_module(audio_model, sizes)
        if pretrained is not None:
            tensors = {
                name: tensor
                for name, tensor in pretrained.tensors.items()
                if name != _NOT_IN_PACKAGE
            }
            try:
                self.package.model.load_state_dict(tensors, strict=True)
            except RuntimeError as error:
                raise UserError(
                    f"the tensors of {pretrained.name} do not fit laion_clap's {audio_model}:"
                    f" {error}"
                ) from error
        self.tokenizer = (
            ClapTokenizer(
                content, sizes["vocab_size"], sizes["pad_token_id"], max_tokens, long_texts
            )
            if content
            else None
        )
        self.arguments = {
            "audio_model": audio_model,
            "tokenizer_bytes": len(content) if isinstance(content, bytes) else content,
            "max_tokens": max_tokens,
            "long_texts": long_texts,
            "text_config": dict(text_config or {}),
        }
        self.eval()

    def embed_audio(self, window_BN: Tensor) -> Tensor:
        """(B, E) float32 unit vectors of mono windows (B, 480000) at 48 kHz.

        No 16-bit round trip (see ``ClapReward``).
        """
        return self.package.get_audio_embedding_from_data(x=window_BN, use_tensor=True).float()

    def check_text(self, text: str) -> None:
        """Raises ``UserError`` for a text that is too long."""
        if self.tokenizer is not None:
            self.tokenizer([text])

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32 unit vectors.

        Raises ``UserError`` for a text that is too long, and without a tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(
                "this CLAP has no tokenizer, so it embeds no texts; name a folder with"
                " tokenizer.json (tokenizer)"
            )
        return self.package.get_text_embedding(
            list(texts), tokenizer=self._tokens, use_tensor=True
        ).float()

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        ids_BL, mask_BL = self.tokenizer(texts)
        return {"input_ids": ids_BL, "attention_mask": mask_BL}


def package_module(audio_model: str, text_sizes: dict[str, Any]) -> nn.Module:
    """``laion_clap.CLAP_Module`` with random weights, on the CPU.

    The network is not asked for anything, and ``sys.path`` is left as it was (the package puts its
    own folder there, with modules named ``training`` and ``evaluate``).

    Raises ``UserError`` when the package is not installed or does not import.
    """
    import transformers

    tokenizers = {
        transformers.BertTokenizer,
        transformers.RobertaTokenizer,
        transformers.BartTokenizer,
    }
    roberta = transformers.RobertaConfig(**text_sizes)
    with ExitStack() as replaced:
        for kind in tokenizers:
            replaced.enter_context(_from_pretrained(kind, lambda cls: None))
        replaced.enter_context(
            _from_pretrained(transformers.RobertaModel, lambda cls: cls(roberta))
        )
        before = list(sys.path)
        try:
            import laion_clap
        except ImportError as error:
            raise UserError(
                f"the laion_clap package cannot be imported ({error}); {_pip_command(error)}, or "
                "set towers=transformers, which needs neither"
            ) from error
        finally:
            sys.path[:] = before
        return laion_clap.CLAP_Module(
            enable_fusion=False, device="cpu", amodel=audio_model, tmodel="roberta"
        )


def _pip_command(error: ImportError) -> str:
    """The pip command for what is missing: laion_clap imports torchvision without asking for it."""
    missing = (error.name or "").partition(".")[0]
    if missing and missing not in ("laion_clap", "torchvision"):
        return f"pip install {missing}"
    if missing == "torchvision":
        return "pip install torchvision (of the release that fits torch: docs/dependencies.md)"
    return "pip install 'laion-clap>=1.1.7,<2' torchvision"


@contextmanager
def _from_pretrained(kind: type, made: Callable[[type], Any]) -> Iterator[None]:
    """Inside, ``kind.from_pretrained(...)`` gives ``made(kind)``, for any arguments."""
    own = kind.__dict__.get("from_pretrained")
    kind.from_pretrained = classmethod(lambda cls, *given, **settings: made(cls))
    try:
        yield
    finally:
        if own is None:
            del kind.from_pretrained
        else:
            kind.from_pretrained = own
