"""Energy and emissions arithmetic against the table of the Llama 3.1 model card."""

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from herd.base.emissions import EnergyConfig, energy_kwh, location_based_g, market_based_g, measured_kwh

PUE, GRID = 1.08, 383.0
# The card prints GPU-hours to a few digits and tonnes to the nearest ten; this is what rounding may hide.
HOURS_ROUNDING = {"8b": 5e3, "70b": 5e4, "405b": 5e3}
TONNES_ROUNDING = 5.0


@pytest.fixture
def published(shared_data):
    card = OmegaConf.load(shared_data / "reference" / "llama31_card.yaml")
    return OmegaConf.to_container(card)["model_card"]["training_energy"]["per_model"]


def tonnes(hours: float, watts: float) -> float:
    return location_based_g(energy_kwh(hours, watts=watts, pue=PUE), intensity=GRID) / 1e6


@pytest.mark.parametrize("size", ["8b", "70b", "405b"])
def test_one_intensity_gives_the_published_tonnes_within_rounding(published, size):
    row, slack = published[size], HOURS_ROUNDING[size]
    low = tonnes(row["gpu_hours"] - slack, row["power_w"])
    high = tonnes(row["gpu_hours"] + slack, row["power_w"])
    stated = row["location_based_tco2eq"]
    assert low <= stated + TONNES_ROUNDING
    assert stated - TONNES_ROUNDING <= high


def test_the_total_is_published_too(published):
    whole = tonnes(published["total"]["gpu_hours"], published["8b"]["power_w"])
    assert published["total"]["location_based_tco2eq"] == 11390
    assert whole == pytest.approx(11390, rel=0.002)
    assert round(tonnes(published["405b"]["gpu_hours"], 700), -1) == 8930


def test_one_kilowatt_hour_is_one_kilowatt_hour():
    assert energy_kwh(10, watts=100, pue=1.0) == pytest.approx(1.0)
    assert measured_kwh(3.6e6, pue=1.0) == pytest.approx(1.0)
    assert measured_kwh(3.6e6, pue=1.25) == pytest.approx(energy_kwh(1, watts=1000, pue=1.25))


def test_certificates_count_as_zero_and_the_rest_at_the_market_intensity():
    assert market_based_g(2.0, intensity=400) == location_based_g(2.0, intensity=400) == 800
    assert market_based_g(2.0, intensity=400, certificates=0.75) == pytest.approx(200)
    assert market_based_g(2.0, intensity=400, certificates=1.0) == 0


@pytest.mark.parametrize("bad", [{"pue": 0.9}, {"watts_per_device": -1}, {"certificates": 2}, {"intensity": 475}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        EnergyConfig(**bad)
