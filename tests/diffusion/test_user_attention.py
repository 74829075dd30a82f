import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableCascadeUNet, UNet2DConditionModel
from diffusers.models.unets.unet_stable_cascade import SDCascadeAttnBlock
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import ReleaseError
from tests.tiny_release import EMBEDDING_DIM, tiny_pipeline

B, ROWS = 3, 2
PATIENCE = 30.0


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_pipeline().unet.eval().requires_grad_(False)


@pytest.fixture
def adapter(unet: UNet2DConditionModel) -> UserAdapter:
    adapter = UserAdapter.for_unet(unet, EMBEDDING_DIM)
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    return adapter


def forward(unet: UNet2DConditionModel) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(B, 4, 4, 4, generator=g), torch.randn(B, 7, 24, generator=g)
    return unet(x, torch.tensor([10.0, 500.0, 990.5]), text).sample


def embeddings(users: int, seed: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(users, ROWS, EMBEDDING_DIM, generator=g)


def test_a_user_costs_a_compiled_block_one_form(unet: UNet2DConditionModel) -> None:
    """And not one for each block: SDXL has seventy, and beyond torch's limit all go uncompiled."""
    deep = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
            "block_out_channels": [32], "transformer_layers_per_block": 3}  # fmt: skip
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**(config | deep)).eval()
    adapter = UserAdapter.for_unet(unet, EMBEDDING_DIM)
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    assert len(adapter.branches) > 10
    users = adapter.project(embeddings(B))[:, None].detach()
    with torch.no_grad(), adapter.condition(users):
        expected = forward(unet)
    stats = torch._dynamo.utils.counters["stats"]
    unet.compile_repeated_blocks(backend="eager", dynamic=False)
    forms = []
    for told in (None, users):
        torch._dynamo.reset()
        before = stats["unique_graphs"]
        with torch.no_grad(), adapter.condition(told):
            found = forward(unet)
        forms.append(stats["unique_graphs"] - before)
    torch._dynamo.reset()
    assert torch.allclose(found, expected, atol=1e-5)
    assert forms[1] == forms[0] < 3


def test_a_new_adapter_changes_nothing(unet: UNet2DConditionModel) -> None:
    base = forward(unet)
    adapter = UserAdapter.for_unet(unet, EMBEDDING_DIM)
    assert torch.equal(forward(unet), base)
    with adapter.condition(adapter.project(embeddings(B))[:, None]):
        assert torch.equal(forward(unet), base)


def test_nobody_is_the_base_bit_for_bit(unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
    base = forward(unet)
    zero = adapter.project(torch.zeros(B, ROWS, EMBEDDING_DIM))
    assert not zero.any()
    with adapter.condition(zero[:, None]):
        assert torch.equal(forward(unet), base)
    tokens = adapter.project(embeddings(B))[:, None]
    with adapter.condition(tokens, torch.tensor([[1.0], [0.0], [-2.0]])):
        mixed = forward(unet)
    assert torch.equal(mixed[1], base[1])
    changed = (mixed - base).abs().amax((1, 2, 3))
    assert changed[0] > 0.1 and changed[2] > 0.1
    assert torch.equal(forward(unet), base), "the condition must end with its block"


def test_threads_draw_for_their_own_users(unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
    first, second = (adapter.project(embeddings(B, seed))[:, None] for seed in (2, 3))
    both_are_told, both_have_drawn = threading.Barrier(2), threading.Barrier(2)

    def draw(users: Tensor | None) -> Tensor:
        with adapter.condition(users):
            both_are_told.wait(PATIENCE)
            drawn = forward(unet)
            both_have_drawn.wait(PATIENCE)
        return drawn

    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(draw, [first, second]))
        beside_nobody = list(threads.map(draw, [first, None]))
    with adapter.condition(first):
        alone = forward(unet)
    assert torch.equal(together[0], alone) and torch.equal(beside_nobody[0], alone)
    assert torch.equal(beside_nobody[1], forward(unet))
    assert (together[1] - alone).abs().max() > 0.1


def test_a_thread_that_was_told_nobody_draws_for_whom_was_told_last(
    unet: UNet2DConditionModel, adapter: UserAdapter
) -> None:
    """On a GPU, backward runs checkpointed forwards again in a thread of autograd's."""
    base = forward(unet)
    with ThreadPoolExecutor(1) as autograd:
        with adapter.condition(adapter.project(embeddings(B))[:, None]):
            mine, again = forward(unet), autograd.submit(forward, unet).result()
        assert torch.equal(mine, again) and not torch.equal(mine, base)
        assert torch.equal(autograd.submit(forward, unet).result(), base)


def test_copies_are_told_for_themselves(unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
    base, tokens = forward(unet), adapter.project(embeddings(B))[:, None]
    with adapter.condition(tokens):
        mine = forward(unet)
        other_unet, other = copy.deepcopy((unet, adapter))
        assert torch.equal(forward(other_unet), base)
    with other.condition(tokens):
        assert torch.equal(forward(other_unet), mine) and torch.equal(forward(unet), base)


def test_users_of_one_row_are_summed_after_separate_attention(
    unet: UNet2DConditionModel, adapter: UserAdapter
) -> None:
    one, other = adapter.project(embeddings(2))
    pair = torch.stack([one, one, other])[:, None]
    halves = torch.stack([one, one]).expand(B, -1, -1, -1, -1)
    with adapter.condition(pair[:1].expand(B, -1, -1, -1, -1)):
        alone = forward(unet)
    with adapter.condition(halves, torch.full((B, 2), 0.5)):
        assert torch.allclose(forward(unet), alone, atol=1e-5)

    # One softmax over both users' tokens would be another picture.
    both = torch.stack([one, other]).expand(B, -1, -1, -1, -1)
    joint = torch.cat([one, other]).expand(B, 1, -1, -1, -1)
    with adapter.condition(both, torch.full((B, 2), 0.5)):
        separate = forward(unet)
    with adapter.condition(joint):
        assert (forward(unet) - separate).abs().max() > 1e-2


def test_absent_users_pad_without_effect(unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
    tokens = adapter.project(embeddings(B))[:, None]
    with adapter.condition(tokens):
        plain = forward(unet)
    padded = torch.cat([tokens, torch.zeros_like(tokens)], 1)
    with adapter.condition(padded, torch.tensor([[1.0, 0.0]] * B)):
        assert torch.allclose(forward(unet), plain, atol=1e-6)


def test_refuses_tokens_of_another_batch(unet: UNet2DConditionModel, adapter: UserAdapter) -> None:
    """What diffusers#9813 does silently: more rows of users than rows of pictures."""
    tokens = adapter.project(embeddings(2 * B))[:, None]
    with adapter.condition(tokens), pytest.raises(ValueError, match="rows"):
        forward(unet)


def test_rows_beyond_the_users_are_nobody_s(
    unet: UNet2DConditionModel, adapter: UserAdapter
) -> None:
    """The unguided half of a batch costs no user attention, and gets none."""
    base, users = forward(unet), adapter.project(embeddings(B))[:, None]
    with adapter.condition(users):
        all_three = forward(unet)
    with adapter.condition(users[:1]):
        first = forward(unet)
    assert torch.equal(first[1:], base[1:])
    assert torch.allclose(first[0], all_three[0], atol=1e-6)


def test_trains_everything_but_the_two_biases(
    unet: UNet2DConditionModel, adapter: UserAdapter
) -> None:
    trained = adapter.trainable_parameters()
    assert len(trained) == sum(1 for _ in adapter.parameters()) - 2
    for dtype in (torch.float32, torch.bfloat16):
        adapter.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            tokens = adapter.project(embeddings(B))
            with adapter.condition(tokens[:, None]):
                loss = forward(unet).float().square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
    assert not any("ip" in key.split(".")[-2] for key in unet.state_dict())


def test_a_float32_adapter_drives_a_bfloat16_base(
    unet: UNet2DConditionModel, adapter: UserAdapter
) -> None:
    tokens = adapter.project(embeddings(B))[:, None]
    with adapter.condition(tokens):
        exact = forward(unet)
    unet.to(torch.bfloat16)
    x = torch.randn(B, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert exact.shape == x.shape
    with adapter.condition(tokens):
        out = unet(x.bfloat16(), torch.tensor(10.0), torch.randn(B, 7, 24).bfloat16()).sample
    assert out.dtype is torch.bfloat16 and out.isfinite().all()


def test_file_round_trip(unet: UNet2DConditionModel, adapter: UserAdapter, tmp_path: Path) -> None:
    file = tmp_path / "adapter" / "ip_adapter.safetensors"
    adapter.save(file)
    keys = set(load_file(file))
    assert {"image_proj.proj.weight", "image_proj.proj.bias", "image_proj.norm.bias"} < keys
    assert {k for k in keys if k.startswith("ip_adapter.")} == {
        f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight"
        for i in range(len(adapter.branches))
        for x in "kv"
    }
    tokens = adapter.project(embeddings(B))[:, None]
    with adapter.condition(tokens):
        before = forward(unet)
    loaded = UserAdapter.load(file, unet)
    assert torch.equal(loaded.project(embeddings(B))[:, None], tokens)
    with loaded.condition(tokens):
        assert torch.equal(forward(unet), before)


def test_refuses_files_it_cannot_be(
    unet: UNet2DConditionModel, adapter: UserAdapter, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    adapter.save(file)
    good = load_file(file)
    broken = {
        "another backbone": {k: v for k, v in good.items() if "ip_adapter.3" not in k},
        "does not fit": {"lora.weight": torch.zeros(2)},
    }
    for message, state in broken.items():
        save_file(state, file)
        with pytest.raises(ReleaseError, match=message):
            UserAdapter.load(file, unet)
    file.write_bytes(b"not safetensors")
    with pytest.raises(ReleaseError, match="cannot read"):
        UserAdapter.load(file, unet)


def test_sdxl_s_unet_takes_the_same_class() -> None:
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    added = {"text_embeds": torch.zeros(2, 16), "time_ids": torch.zeros(2, 6)}
    inputs = torch.randn(2, 4, 4, 4), torch.tensor(5.0), torch.randn(2, 7, 24)
    base = unet(*inputs, added_cond_kwargs=added).sample
    adapter = UserAdapter.for_unet(unet, EMBEDDING_DIM)
    assert len(adapter.branches) == 2 + 4 + 2
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    tokens = adapter.project(embeddings(2))[:, None]
    with adapter.condition(tokens, torch.tensor([[1.0], [0.0]])):
        out = unet(*inputs, added_cond_kwargs=added).sample
    assert torch.equal(out[1], base[1]) and (out[0] - base[0]).abs().max() > 1e-2


def test_stable_cascade_s_blocks_take_the_same_class() -> None:
    """Stage C, the paper's own backbone, has no IP-Adapter in diffusers but plain attentions."""
    torch.manual_seed(0)
    stage_c = StableCascadeUNet(
        timestep_ratio_embedding_dim=8,
        conditioning_dim=24,
        block_out_channels=(32, 32),
        num_attention_heads=(4, 4),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        )
        * 2,
        clip_text_in_channels=24,
        clip_text_pooled_in_channels=24,
        clip_image_in_channels=24,
        clip_seq=1,
        switch_level=(False,),
    ).eval()
    for parameter in stage_c.parameters():  # some start at zero, and would hide every effect
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = {
        "sample": torch.randn(2, 16, 4, 4),
        "timestep_ratio": torch.tensor([0.5, 0.9]),
        "clip_text_pooled": torch.randn(2, 1, 24),
        "clip_text": torch.randn(2, 7, 24),
        "clip_img": torch.randn(2, 1, 24),
    }
    base = stage_c(**inputs).sample
    blocks = [m for m in stage_c.modules() if isinstance(m, SDCascadeAttnBlock)]
    adapter = UserAdapter([block.attention for block in blocks], EMBEDDING_DIM)
    for branch in adapter.branches:
        torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    assert torch.equal(stage_c(**inputs).sample, base)
    tokens = adapter.project(embeddings(2))[:, None]
    with adapter.condition(tokens, torch.tensor([[0.0], [1.0]])):
        out = stage_c(**inputs).sample
    assert torch.equal(out[0], base[0]) and (out[1] - base[1]).abs().max() > 1e-2
