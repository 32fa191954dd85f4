"""Concept vectors against sums by hand; planted clusters are found, and what is in none of them is an outlier."""

import math

import pytest
import torch
from support import assert_close, make

from lxt_compose import attribute
from lxt_compose.concepts import ConceptVectors, concept_vectors, fit_prototypes, record

pytest.importorskip("sklearn")
PLANTED = torch.tensor([[4.0, 0, 0, 1], [0, 4.0, 1, 0], [0, 0, 5.0, 0]], dtype=torch.float64)


def clusters(count=60, seed=0):
    """Two clusters of class 7 (two thirds of it in the first one), one of class 2: vectors, labels, clusters."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.tensor([0, 0, 1, 2]).repeat(count // 4)
    values = PLANTED[which] + 0.1 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return ConceptVectors(values, ("a", "b", "c", "d"), torch.tensor([7, 7, 2])[which]), which


class TestVectors:
    def test_relevance(self):
        model, x = make("cnn")
        found = concept_vectors(model, x.split(1), ["3", "1[0:2]"], target=1, labels=[0] * len(x))
        latent = attribute(model, x, target=1, layers=["3", "1"]).latent
        expected = torch.cat([latent["3"].sum((2, 3)), latent["1"].sum((2, 3))[:, :2]], 1)
        assert_close(found.values, expected.double(), 1e-6)
        assert found.names[-3:] == (f"3[{latent['3'].shape[1] - 1}]", "1[0]", "1[1]")
        assert repr(found) == f"<ConceptVectors of {len(x)} samples and {len(found.names)} units>"

    def test_activation(self):
        model, x = make("cnn")
        seen = record(model, x, "1")["1"][0]
        assert_close(concept_vectors(model, [x], "1", by="activation").values, seen.mean((2, 3)), 1e-9)

    def test_errors(self):
        model, x = make("mlp")
        with pytest.raises(ValueError, match="got by='both'"):
            concept_vectors(model, [x], "act", by="both")
        with pytest.raises(ValueError, match="there were no batches"):
            concept_vectors(model, [], "act")
        with pytest.raises(ValueError, match=rf"there are {len(x)} samples, but labels of shape \[1\]"):
            concept_vectors(model, [x], "act", labels=[3])


class TestPrototypes:
    @pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
    def test_planted_clusters_are_found(self, covariance):
        vectors, which = clusters()
        found = fit_prototypes(vectors, count=[1, 2, 3], covariance=covariance, normalize=False)
        assert [len(found.of(label)) for label in (2, 7)] == [1, 2]
        first, second = found.of(7)
        assert first.share == pytest.approx(2 / 3, abs=0.02)
        for prototype, cluster in ((first, 0), (second, 1), (found.of(2)[0], 2)):
            assert_close(prototype.mean, PLANTED[cluster], 0.1)
            distances = (vectors.values - prototype.mean).norm(dim=1)
            distances[which != cluster] = math.inf
            assert prototype.sample == int(distances.argmin())
        mine = found.nearest(vectors.values[which < 2], 7)
        assert [each.number for each in mine] == which[which < 2].tolist()

    def test_likelihood_by_hand(self):
        """One component: the density of a Gaussian, with the mean and the covariance of the samples."""
        vectors, _ = clusters()
        found = fit_prototypes(vectors, normalize=False, regularization=0.0)
        mine = vectors.values[vectors.labels == 2]
        mean, covariance = mine.mean(0), torch.cov(mine.T, correction=0)
        gaussian = torch.distributions.MultivariateNormal(mean, covariance)
        assert found.labels == [2, 7]
        assert_close(found.log_likelihoods(mine)[:, 0], gaussian.log_prob(mine), 1e-6)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_outliers(self, normalize):
        vectors, _ = clusters(400)
        found = fit_prototypes(vectors, count=2, normalize=normalize)
        fresh, _ = clusters(200, seed=1)
        strange = torch.tensor([[2.0, 2, 2, -2]]).double() + 0.1 * torch.randn(50, 4, dtype=torch.float64)
        assert float(found.outliers(fresh, fresh.labels).double().mean()) < 0.06
        assert found.outliers(strange, [7] * 50).all()
        own = found.outliers(vectors, vectors.labels, share=0.1)
        assert float(own.double().mean()) == pytest.approx(0.1, abs=0.02)
        likely = found.log_likelihoods(fresh)
        assert torch.equal(torch.tensor(found.labels)[likely.argmax(1)], fresh.labels)

    def test_normalized_vectors_forget_the_logit(self):
        vectors, _ = clusters()
        found = fit_prototypes(vectors)
        assert_close(found.log_likelihoods(vectors), found.log_likelihoods(3 * vectors.values), 1e-6)

    def test_it_shows_itself(self):
        vectors, _ = clusters()
        found = fit_prototypes(vectors, count=2)
        assert repr(found) == "<Prototypes: 4 of 2 classes, 4 units>"
        assert f"class 7, 67%: like sample {found.of(7)[0].sample}" in found._repr_html_()

    def test_errors(self, monkeypatch):
        vectors, _ = clusters()
        found = fit_prototypes(vectors)
        with pytest.raises(ValueError, match=r"vectors are \[samples, 4 units\], got the shape \[2, 3\]"):
            found.log_likelihoods(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"need a label each, of \[2, 7\]; got \[3"):
            found.outliers(vectors, [3] * 60)
        with pytest.raises(ValueError, match=r"prototypes are of classes: call concept_vectors\(..., labels=\)"):
            fit_prototypes(ConceptVectors(vectors.values, vectors.names))
        with pytest.raises(ValueError, match="class 2 has 15 samples, too few for 15 prototypes"):
            fit_prototypes(vectors, count=[1, 15])
        with pytest.raises(ValueError, match="not finite, or all equal"):
            fit_prototypes(ConceptVectors(torch.ones(4, 2), ("a", "b"), torch.zeros(4)))
        monkeypatch.setitem(__import__("sys").modules, "sklearn.mixture", None)
        with pytest.raises(ImportError, match=r"prototypes need scikit-learn: pip install 'lxt-compose\[concepts\]'"):
            fit_prototypes(vectors)
