"""Choices of items, against brute force, exact expectations and other implementations."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from evomerge.errors import ConfigError
from evomerge.estimators.catalogue import CHOICES, Knowledge, choose, next_items
from evomerge.estimators.choice import allocate, choose_stratified, quantile_strata
from evomerge.estimators.clusters import choose_kmeans, kmeans
from evomerge.estimators.designs import (
    asked_by_variance,
    choose_information,
    inclusion,
    next_by_information,
    next_by_variance,
)
from evomerge.estimators.population import Population
from evomerge.irt.model import ItemModel


def item_model(n, d=1, seed=0):
    rng = np.random.default_rng(seed)
    alpha = np.abs(rng.normal(1.2, 0.5, (n, d)))
    beta = 1.5 * rng.standard_normal(n)
    return ItemModel(tuple(f"i{k}" for k in range(n)), alpha, beta, 0 * alpha, 0 * beta)


def knowledge(n=60, d=2, models=30):
    rng = np.random.default_rng(1)
    model = item_model(n, d)
    answers = (rng.random((models, n)) < model.probability(rng.standard_normal((models, d)))) * 1.0
    features = rng.standard_normal((n, 5))
    return Knowledge(model.items, model, answers, answers[:3], features)


@pytest.fixture(scope="module")
def known():
    return knowledge()


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("n", [1, 7, 60])
def test_every_choice_gives_distinct_items_and_weights(known, name, n):
    choice = choose(name, known, n, 3)
    assert len(np.unique(choice.indices)) == len(choice) == n
    assert choice.indices.min() >= 0
    assert choice.indices.max() < 60
    assert choice.weights.sum() == pytest.approx(1)
    assert (choice.weights >= 0).all()
    again = choose(name, known, n, 3)
    assert np.array_equal(choice.indices, again.indices)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("n", [0, 61])
def test_a_number_of_items_that_cannot_be_is_refused(known, name, n):
    with pytest.raises(ConfigError, match="60 items; expected 1 to 60"):
        choose(name, known, n, 0)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("kmeans_items", "model"),
        ("kmeans_responses", "responses"),
        ("kmeans_texts", "features"),
        ("information", "model"),
        ("variance", "model"),
        ("balanced", "model"),
    ],
)
def test_a_choice_names_what_it_lacks(name, missing):
    with pytest.raises(ConfigError, match=f"no {missing}"):
        choose(name, Knowledge(("a", "b", "c")), 2, 0)


def test_an_unknown_name_lists_those_there_are(known):
    with pytest.raises(ConfigError, match="kmeans_items"):
        choose("kmean", known, 2, 0)


def test_items_unknown_to_the_fit_are_named():
    with pytest.raises(ConfigError, match="zzz"):
        Knowledge(("i0", "zzz"), item_model(3))


def test_a_model_of_more_items_in_another_order_is_aligned():
    model = item_model(5)
    known = Knowledge(("i3", "i1"), model)
    assert known.model is not None
    assert np.array_equal(known.model.difficulty, model.difficulty[[3, 1]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data())
def test_allocation_is_within_one_of_proportional(sizes, data):
    sizes = np.array(sizes)
    n = data.draw(st.integers(1, int(sizes.sum())))
    shares = allocate(sizes, n)
    assert shares.sum() == n
    assert (np.abs(shares - n * sizes / sizes.sum()) < 1).all()
    assert (shares <= sizes).all()


def test_a_stratified_draw_is_unbiased():
    y = np.array([0, 0, 1, 1, 0, 1, 1, 1.0])
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    means = []
    for seed in range(4000):
        choice = choose_stratified(strata, 4, np.random.default_rng(seed))
        means.append(choice.weights @ y[choice.indices])
    assert np.mean(means) == pytest.approx(y.mean(), abs=4 * np.std(means) / 4000**0.5)


def test_quantile_strata_are_of_equal_sizes_and_ordered():
    values = np.random.default_rng(0).permutation(12).astype(float)
    strata = quantile_strata(values, 4)
    assert np.bincount(strata).tolist() == [3, 3, 3, 3]
    assert np.array_equal(strata[np.argsort(values)], np.repeat(range(4), 3))


def test_kmeans_finds_as_good_clusters_as_another_implementation():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((200, 3)) + 6 * rng.integers(0, 3, (200, 3))
    ours = min(kmeans(data, 6, np.random.default_rng(s))[2] for s in range(5))
    theirs = KMeans(6, n_init=10, random_state=0).fit(data).inertia_
    assert ours <= 1.02 * theirs


def test_anchors_are_the_items_nearest_their_centres():
    data = np.array([[0.0], [0.1], [0.3], [5.0], [5.2], [5.3], [5.2]])
    choice = choose_kmeans(data, 2, 0)
    assert choice.indices[0] == 1
    assert choice.indices[1] in (4, 6)
    assert choice.weights.tolist() == [3 / 7, 4 / 7]


def test_equal_items_still_give_as_many_anchors():
    choice = choose_kmeans(np.zeros((9, 2)), 5, 0)
    assert len(np.unique(choice.indices)) == 5
    assert choice.weights.sum() == pytest.approx(1)


def test_maximum_information_is_the_best_determinant_by_brute_force():
    model, theta = item_model(7, 2), np.array([[0.3, -0.2]])
    first = choose_information(model, theta, 1).indices
    info = model.information(theta[0])
    gains = [np.linalg.slogdet(info[i] + np.eye(2))[1] for i in range(7)]
    assert first[0] == int(np.argmax(gains))
    pair = choose_information(model, theta, 2).indices
    second = [np.linalg.slogdet(info[pair[0]] + info[i] + np.eye(2))[1] for i in range(7)]
    second[pair[0]] = -np.inf
    assert pair[1] == int(np.argmax(second))


def test_the_next_item_by_information_is_the_best_determinant():
    model, theta = item_model(8, 2), np.array([0.1, 0.5])
    info, prior = model.information(theta), np.array([[2.0, 0.3], [0.3, 1.0]])
    gains = [np.linalg.slogdet(np.linalg.inv(prior) + info[i])[1] for i in range(8)]
    gains[2] = -np.inf
    found = next_by_information(model, theta, prior, np.array([2]), 1)
    assert found.tolist() == [int(np.argmax(gains))]


def expected_variance(population, asked, answers, item):
    """Of the posterior mean probability over all items once an item is answered, by its cases."""
    w = population.posterior(asked, answers)
    p = population.probability(np.array([item]))[:, 0]
    totals = population.totals / len(population)
    out = 0.0
    for y in (0, 1):
        joint = w * (p if y else 1 - p)
        given_y = joint / joint.sum()
        mean = given_y @ totals
        out += joint.sum() * (given_y @ (totals - mean) ** 2)
    return out


def test_the_next_item_by_variance_lowers_the_expected_variance_most():
    population = Population.of(item_model(12, 2), None)
    asked, answers = np.array([3, 5]), np.array([1.0, 0.0])
    found = next_by_variance(population, asked, answers, 1)[0]
    worth = {i: expected_variance(population, asked, answers, i) for i in range(12)}
    for i in asked:
        del worth[int(i)]
    assert found == min(worth, key=worth.get)


def test_asking_many_models_is_asking_each_one_item_after_the_other():
    population = Population.of(item_model(25, 2), None)
    answers = (np.random.default_rng(2).random((4, 25)) < 0.5) * 1.0
    together = asked_by_variance(population, answers, 6)
    for row, order in zip(answers, together, strict=True):
        asked = np.zeros(0, dtype=np.int64)
        for _ in range(6):
            asked = np.append(asked, next_by_variance(population, asked, row[asked], 1))
        assert order.tolist() == asked.tolist()


@pytest.mark.parametrize("name", ["information", "variance"])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_next_items_are_new_and_as_many_as_are_left(known, name, threshold):
    asked = np.arange(55)
    answers = np.ones(55)
    found = next_items(name, known, asked, answers, 9, threshold)
    assert sorted(found.tolist()) == [55, 56, 57, 58, 59]
    assert len(next_items(name, known, [], [], 4, threshold)) == 4


def test_a_decision_asks_for_items_near_its_threshold():
    n = 41
    beta = np.linspace(-4, 4, n)
    model = ItemModel(tuple(map(str, range(n))), np.full((n, 1), 2.0), beta,
                      np.zeros((n, 1)), np.zeros(n))  # fmt: skip
    known = Knowledge(model.items, model)
    low = next_items("variance", known, [], [], 1, 0.25)[0]
    high = next_items("variance", known, [], [], 1, 0.75)[0]
    assert beta[low] < beta[high]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=20), st.data())
def test_chances_sum_to_the_number_and_keep_proportions(sizes, data):
    sizes = np.array(sizes)
    n = data.draw(st.integers(1, len(sizes)))
    chances = inclusion(sizes, n)
    assert chances.sum() == pytest.approx(n)
    assert (chances <= 1).all()
    free = chances < 1 - 1e-6
    ratio = chances[free] / sizes[free]
    assert np.allclose(ratio, ratio[:1])


def test_a_balanced_draw_has_the_chances_it_claims(known):
    counts = np.zeros(60)
    weights = np.zeros(60)
    for seed in range(3000):
        choice = choose("balanced", known, 10, seed)
        counts[choice.indices] += 1
        weights[choice.indices] = choice.weights
    share = counts / 3000
    assert np.abs(share.sum() - 10) < 1e-9
    # weights are in inverse proportion to the chances
    for i, j in itertools.pairwise(np.flatnonzero(share > 0.05)[:10]):
        assert share[i] / share[j] == pytest.approx(_chance(known, i) / _chance(known, j), rel=0.35)


def _chance(known, item):
    """By what an answer tells of the full score, from the draws one by one."""
    population = known.population
    p = population.probability(np.array([item]))[:, 0]
    scores = population.totals
    covariance = np.mean(p * scores) - p.mean() * scores.mean()
    return abs(covariance) / np.sqrt(p.mean() * (1 - p.mean()))


def test_the_pool_of_many_items_is_a_part_of_them():
    model = item_model(5000, 2)
    known = Knowledge(model.items, model)
    assert len(known.population.pool) <= 4096
    assert len(np.unique(choose("variance", known, 30, 0).indices)) == 30
    assert len(np.unique(next_items("variance", known, [0, 1], [1.0, 0.0], 5))) == 5
