"""What all tests share."""


def pytest_collection_modifyitems(items):
    """The longest first: with two workers everything else then runs beside the smoke run of the whole pipeline."""
    items.sort(key=lambda item: "slow" not in item.keywords)
