"""What all tests share."""


def pytest_collection_modifyitems(items):
    """Start the longest first: with two workers the rest then runs beside the smoke run."""
    items.sort(key=lambda item: "slow" not in item.keywords)
