"""What PostgreSQL can do, for the suite to choose its tests by: nearly everything that it asks about."""

from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

# Of other databases, of other Pythons, and of SQLAlchemy's own repository.
MISSING = frozenset(
    """
    async_dialect computed_columns_default_persisted dbapi_lastrowid delete_from denormalized_names emulated_lastrowid
    emulated_lastrowid_even_with_sequences fetch_percent foreign_keys_reflect_as_index freethreading
    materialized_views_reflect_pk mod_operator_as_percent_sign no_greenlet non_updating_cascade nvarchar_types
    order_by_label_with_expression patch_library pep649 python312 python314 reflect_indexes_with_ascdesc_as_expression
    repeated_remote_col_foreign_keys sqlalchemy2_stubs supports_lastrowid timestamp_microseconds
    timestamp_microseconds_implicit_bound unique_index_reflect_as_unique_constraints no_sequences
    """.split()
)
# What SQLAlchemy finds out for itself.
FOUND_OUT = frozenset(("memory_intensive", "timing_intensive", "no_coverage", "threading_with_mock"))


class Requirements(SuiteRequirements):  # type: ignore[misc]  # SQLAlchemy's testing package has no types
    """Everything that the suite asks about but what is missing."""

    def __getattribute__(self, name: str) -> Any:
        is_asked = isinstance(getattr(SuiteRequirements, name, None), property)
        if not is_asked or name in FOUND_OUT:
            return super().__getattribute__(name)
        return exclusions.closed() if name in MISSING else exclusions.open()
