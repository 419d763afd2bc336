"""Our forward pass and the generic one against ``transformers``, over the family's variants."""

from pathlib import Path

import pytest
import torch
import transformers

from tokenmill.decide.batching.types import Chunk, Sequence, SequenceRequest, StepPlan
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.torch import llama
from tokenmill.serve.engines.torch.attention import PagedCache, flatten
from tokenmill.serve.engines.torch.checkpoint import Checkpoint
from tokenmill.serve.engines.torch.generic import GenericModel
from tokenmill.serve.engines.torch.llama import LlamaModel
from tokenmill.serve.engines.torch.model import load_model

CPU = torch.device("cpu")
NUMBERS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILY = {
    "llama3 rope, biases": lambda: transformers.LlamaConfig(
        **NUMBERS, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True
    ),
    "linear rope, tied": lambda: transformers.LlamaConfig(
        **NUMBERS,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        tie_word_embeddings=True,
    ),
    "mistral without window": lambda: transformers.MistralConfig(**NUMBERS, sliding_window=None),
    "qwen2 with late windows": lambda: transformers.Qwen2Config(
        **NUMBERS, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3 odd heads": lambda: transformers.Qwen3Config(**NUMBERS, head_dim=24),
}
OTHERS = {
    "yarn rope": lambda: transformers.LlamaConfig(
        **NUMBERS, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "gemma2 with softcaps": lambda: transformers.Gemma2Config(
        **NUMBERS, head_dim=8, sliding_window=6, attn_logit_softcapping=5.0, query_pre_attn_scalar=8
    ),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=3, n_head=4, vocab_size=70, n_positions=128, bos_token_id=None, eos_token_id=None
    ),
    "phi partial rotary": lambda: transformers.PhiConfig(**NUMBERS),
    "olmoe experts": lambda: transformers.OlmoeConfig(**NUMBERS, num_experts=4, num_experts_per_tok=2),
}


def saved(config, folder: Path):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.add_(
                torch.randn_like(parameter) * 0.3
            )
    model.save_pretrained(folder)
    return model


def paged_logits(model, tokens: list[int], chunks: list[int]) -> torch.Tensor:
    """All logits of a sequence computed in chunks over scattered blocks."""
    shape = model.shape
    cache = PagedCache(torch.zeros(2 * shape.layers, 40, 4, shape.kv_heads * shape.head_dim), shape.kv_heads)
    request = SequenceRequest(request_id=RequestId("a"), prompt=tokens, max_tokens=1)
    sequence = Sequence(request=request, tokens=tokens, prompt_len=len(tokens), arrival=0.0)
    sequence.blocks = [(7 * n + 3) % 40 for n in range(20)]
    parts, start = [], 0
    with torch.inference_mode():
        for length in chunks:
            plan = StepPlan(0, [Chunk(sequence, start, length, samples=False)], 0, length)
            parts.append(model.compute(flatten(plan, 4, CPU), cache, None))
            start += length
    return torch.cat(parts)


def compare(folder: Path, reference, model) -> None:
    tokens = [(11 * n * n + 5 * n + 2) % 70 for n in range(40)]
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
    assert float(expected.std()) > 0.1
    for chunks in ([40], [5, 1, 1, 13, 20]):
        torch.testing.assert_close(paged_logits(model, tokens, chunks), expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family(tmp_path, name):
    reference = saved(FAMILY[name](), tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert llama.covers(checkpoint)
    compare(tmp_path, reference, load_model(checkpoint, torch.float32, CPU))
    compare(tmp_path, reference, GenericModel(checkpoint, torch.float32, CPU))


@pytest.mark.parametrize("name", OTHERS)
def test_others_take_the_generic_path(tmp_path, name):
    reference = saved(OTHERS[name](), tmp_path)
    model = load_model(Checkpoint(tmp_path), torch.float32, CPU)
    assert isinstance(model, GenericModel)
    compare(tmp_path, reference, model)


def test_plain_weights_where_onednn_cannot(tmp_path, monkeypatch):
    reference = saved(FAMILY["llama3 rope, biases"](), tmp_path)
    monkeypatch.setattr(llama, "can_pack", lambda *_: False)
    compare(tmp_path, reference, LlamaModel(Checkpoint(tmp_path), torch.float32, CPU))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=70), "Mamba"),
        (lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=70), "Bloom"),
    ],
    ids=["mamba", "bloom"],
)
def test_what_cannot_be_paged_is_refused(tmp_path, config, says):
    saved(config(), tmp_path)
    with pytest.raises(ConfigError, match=says):
        load_model(Checkpoint(tmp_path), torch.float32, CPU)
