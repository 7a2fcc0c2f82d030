"""The VQ-GAN network against a plain one of the same weights and against transformers' ChameleonVQVAE."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from bench.taming_reference import TamingModel
from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.image import build_autoencoder
from worldloom.tokenizers.taming import architecture, key_table, put_weights
from worldloom.tokenizers.taming_settings import Taming

SMALL = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 2, "z_channels": 24, "embed_dim": 16, "n_embed": 50}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew: fresh biases are zero and fresh norms one, which hides what is missing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.0 if "embedding" in name else min(0.1, parameter[0].numel() ** -0.5) if parameter.ndim > 1 else 0.1
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def ours(reference: nn.Module) -> DiscreteAutoencoder:
    weights = reference.state_dict()
    settings = architecture(weights)
    autoencoder = build_autoencoder(settings, seed=1)
    put_weights(autoencoder, settings, weights)
    return autoencoder.eval()


def pictures(count: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("attn", [(False, False), (False, True), (True, True)])
def test_encoder_codes_and_decoder_equal_the_plain_network(attn: tuple[bool, bool]) -> None:
    reference = randomised(TamingModel(**SMALL, attn=attn))
    autoencoder, x = ours(reference), pictures()
    with torch.no_grad():
        assert torch.allclose(autoencoder.encoder(x), reference.features(x), atol=1e-5, rtol=0)
        codes = reference.encode(x)
        assert len(codes.unique()) > 5 and torch.equal(autoencoder.encode(x), codes)
        back = reference.decode(codes)
        assert torch.allclose(autoencoder.decode(codes), back, atol=1e-5 * back.abs().max().item(), rtol=0)
        # Fused attention rounds otherwise than two products and a softmax; in float64 nothing is left of that.
        autoencoder.double(), reference.double()
        z = reference.quantize.embedding(codes).permute(0, 3, 1, 2)
        assert torch.allclose(autoencoder.encoder(x.double()), reference.features(x.double()), atol=1e-11, rtol=0)
        assert torch.allclose(autoencoder.decoder(z), reference.decode(codes), atol=1e-11, rtol=0)


def test_gradients_of_every_parameter_equal_those_of_the_plain_network() -> None:
    reference = randomised(TamingModel(**SMALL, attn=(False, True))).double()
    autoencoder, x = ours(reference).double(), pictures().double()
    reference.decoder(reference.post_quant_conv(reference.features(x))).square().mean().backward()
    autoencoder.decoder(autoencoder.encoder(x)).square().mean().backward()
    mine, theirs = dict(autoencoder.named_parameters()), dict(reference.named_parameters())
    for name, other in key_table(architecture(reference.state_dict())).items():
        if not name.startswith("quantizer"):
            assert torch.allclose(mine[name].grad, theirs[other].grad, atol=1e-5, rtol=1e-3), name


def test_features_and_codes_equal_those_of_transformers_chameleon() -> None:
    config = ChameleonVQVAEConfig(
        embed_dim=16, num_embeddings=50, latent_channels=24, resolution=32, base_channels=32, channel_multiplier=[1, 2], num_res_blocks=2,
        attn_resolutions=[16], attn_type="vanilla", double_latent=False,
    )  # fmt: skip
    chameleon = randomised(ChameleonVQVAE(config))
    reference = TamingModel(**SMALL, attn=(False, True))
    weights = {key: value for key, value in reference.state_dict().items() if key.startswith(("decoder.", "post_quant_conv."))}
    settings = architecture(chameleon.state_dict() | weights)
    autoencoder = build_autoencoder(settings, seed=1)
    held = {key: value for key, value in chameleon.state_dict().items() if not key.startswith("post_quant_conv.")}
    put_weights(autoencoder, settings, weights | held)
    x = pictures(2, 32, 32)
    with torch.no_grad():
        features = chameleon.quant_conv(chameleon.encoder(x))
        _, _, codes = chameleon.quantize(features)
        assert torch.allclose(autoencoder.eval().encoder(x), features, atol=1e-5, rtol=0)
        assert torch.equal(autoencoder.encode(x).flatten(), codes.flatten()) and len(codes.unique()) > 5


@pytest.mark.parametrize("attn", [(False, False, True), (True, False, False)])
def test_the_table_of_keys_is_a_bijection_on_both_networks(attn: tuple[bool, ...]) -> None:
    reference = TamingModel(**{**SMALL, "ch_mult": (1, 1, 2)}, attn=attn)
    settings = architecture(reference.state_dict())
    table = key_table(settings)
    assert set(table.values()) == set(reference.state_dict()) and len(set(table.values())) == len(table)
    assert set(table) == {name for name, _ in build_autoencoder(settings, 0).named_parameters()}


def test_pictures_that_cells_do_not_divide_are_refused() -> None:
    autoencoder = build_autoencoder(Taming(width=32, multipliers=(1, 1, 1), attention=(False,) * 3, blocks=1), 0)
    with pytest.raises(ValueError, match="pictures of 6 x 8 pixels cannot be divided into cells of 4 x 4"):
        autoencoder.encoder(torch.zeros(1, 3, 6, 8))


def test_bf16_keeps_nearly_all_codes_and_is_off_while_gradients_are_taken() -> None:
    reference = randomised(TamingModel(**SMALL, attn=(False, True)))
    autoencoder, x = ours(reference), pictures(4, 32, 32)
    with torch.no_grad():
        whole = autoencoder.encoder(x)
        autoencoder.encoder.low = True
        low = autoencoder.encoder(x)
        assert low.dtype == torch.float32 and not torch.equal(low, whole)
        got, exact = autoencoder.encode(x).flatten(), reference.encode(x).flatten()
        assert (got == exact).float().mean() > 0.97
        # Where a code differs, the vector lies next to the border between the two: one of 5 % of its length would carry it over.
        z, e = whole.movedim(1, -1).flatten(0, -2), reference.quantize.embedding.weight
        further = (z - e[got]).square().sum(1) - (z - e[exact]).square().sum(1)
        assert (further <= 0.05 * z.norm(dim=1) * 2 * (e[got] - e[exact]).norm(dim=1)).all()
    assert torch.equal(autoencoder.encoder(x).detach(), whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 48}, "width must be a multiple of 32"),
        ({"multipliers": (1, 2)}, "attention says something of 5 resolutions, multipliers of 2"),
    ],
)
def test_settings_that_make_no_network_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Taming.model_validate({**Taming().model_dump(), **changed})
