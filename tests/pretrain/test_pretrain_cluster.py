"""Kinds of tissue without labels, and labels that spread."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from test_pretrain_stream import entries, sampler, write_slide

from wsipipe.errors import ConfigError
from wsipipe.pretrain.cluster import cluster_features, find_anchors, read_anchors, reduce_features
from wsipipe.pretrain.semi import propagate_labels
from wsipipe.pretrain.stream import SlideSource


def blobs(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    return make_blobs(n, 8, centers=3, cluster_std=1.5, random_state=0)


def test_clusters_find_separate_kinds() -> None:
    x, y = blobs()
    assert adjusted_rand_score(y, cluster_features(x, 3)) > 0.95
    np.testing.assert_array_equal(cluster_features(x, 3), cluster_features(x, 3))
    with pytest.raises(ConfigError, match="cannot make 9 clusters"):
        cluster_features(x[:5], 9)


@pytest.mark.full
def test_umap_keeps_kinds_apart() -> None:
    pytest.importorskip("umap")
    x, y = blobs(150)
    assert reduce_features(x, 2).shape == (150, 2)
    assert adjusted_rand_score(y, cluster_features(x, 3, umap_dims=2)) > 0.9


@pytest.mark.parametrize("method", ["self-training", "label-spreading"])
def test_a_few_labels_reach_the_rest(method: str) -> None:
    x, y = blobs()
    labels = np.full(len(y), -1)
    for kind in range(3):
        labels[np.flatnonzero(y == kind)[:3]] = kind
    out = propagate_labels(x, labels, method=method)
    known = out.labels >= 0
    assert known.mean() > 0.9
    assert (out.labels[known] == y[known]).mean() > 0.95
    np.testing.assert_array_equal(out.labels[labels >= 0], labels[labels >= 0])
    assert out.confidence.min() >= 1 / 3 - 1e-9


def test_labels_of_one_class_are_refused() -> None:
    x, _ = blobs(20)
    with pytest.raises(ConfigError, match="two classes"):
        propagate_labels(x, np.r_[np.zeros(5, int), -np.ones(15, int)])


def test_anchors_are_found_by_texture_kept_and_read_again(tmp_path) -> None:
    slides = entries(*(write_slide(tmp_path / f"s{i}.tif", seed=i) for i in range(2)))
    source = SlideSource(slides, sampler(mpp=0.25))
    anchors = find_anchors(source, None, tmp_path)
    assert len(anchors.slide) == 128
    assert set(anchors.slide) == {0, 1}
    assert len(set(anchors.cluster)) == 9
    # All lie in the tissue square or at its edge.
    assert anchors.xy.min() > 1536 / 4 - 96
    assert anchors.xy.max() < 1536 * 3 / 4 + 96
    again = read_anchors(tmp_path / "clusters.csv", source)
    np.testing.assert_array_equal(again.cluster, anchors.cluster)
    np.testing.assert_allclose(again.xy, anchors.xy, atol=0.1)


def test_a_table_without_the_slides_is_refused(tmp_path) -> None:
    slides = entries(write_slide(tmp_path / "s.tif"))
    source = SlideSource(slides, sampler(mpp=0.25))
    path = tmp_path / "clusters.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["slide_id", "x", "y", "cluster"], ["other", 1, 2, 3]])
    with pytest.raises(ConfigError, match="none of the slides"):
        read_anchors(path, source)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a table of clusters"):
        read_anchors(path, source)
