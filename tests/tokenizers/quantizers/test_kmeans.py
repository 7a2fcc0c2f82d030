import torch

from worldloom.tokenizers.quantizers.kmeans import draw_by_error, draw_evenly, kmeans


def test_centres_find_clusters_that_stand_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 10 * torch.randn((13, 3), generator=generator)
    vectors = (truth[:, None] + 0.01 * torch.randn((13, 17, 3), generator=generator)).reshape(-1, 3)
    centres = kmeans(vectors, 13, rounds=10, generator=torch.Generator().manual_seed(1))
    assert torch.cdist(truth, centres).amin(1).max() < 0.1


def test_more_centres_than_vectors_are_all_different() -> None:
    vectors = torch.randn((5, 2), generator=torch.Generator().manual_seed(0))
    centres = kmeans(vectors, 12, rounds=3, generator=torch.Generator().manual_seed(1))
    assert centres.shape == (12, 2)
    assert len(centres.unique(dim=0)) == 12


def test_the_same_seed_gives_the_same_centres() -> None:
    vectors = torch.randn((50, 2), generator=torch.Generator().manual_seed(0))
    first, second = (kmeans(vectors, 7, rounds=4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_badly_served_vectors_are_drawn_more_often() -> None:
    vectors = torch.cat([torch.zeros(99, 2), torch.full((1, 2), 50.0)])
    drawn = torch.cat([draw_by_error(vectors, torch.zeros(1, 2), 1, torch.Generator().manual_seed(seed)) for seed in range(60)])
    share = (drawn.mean(1) > 25).float().mean().item()
    assert 0.3 < share < 0.7  # 0.505 expected, where an even draw would give 0.01


def test_an_even_draw_takes_from_each_crowd_by_its_size_and_stays_in_it() -> None:
    vectors = torch.cat([torch.zeros(30, 2), torch.full((90, 2), 50.0)])
    drawn = draw_evenly(vectors, torch.zeros(1, 2), 40, torch.Generator().manual_seed(0))
    crowded = drawn.mean(1) > 25
    assert 24 <= int(crowded.sum()) <= 36  # 30 expected
    assert (drawn[crowded] - 50).abs().max() < 0.05 and drawn[~crowded].abs().max() < 0.05


def test_an_even_draw_of_more_than_there_are_takes_each_and_makes_no_two_alike() -> None:
    vectors = torch.tensor([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]])
    drawn = draw_evenly(vectors, vectors, 7, torch.Generator().manual_seed(0))
    assert drawn.shape == (7, 2) and len(drawn.unique(dim=0)) == 7
    assert sorted(torch.cdist(drawn, vectors).argmin(1).bincount().tolist()) == [2, 2, 3]
