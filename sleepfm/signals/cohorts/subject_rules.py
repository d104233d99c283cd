"""Where a cohort keeps what is known of its people: tables of one row a person or visit, and which column means what."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from sleepfm.config import Config


class Quantity(NamedTuple):
    """A number that is known of people: its unit, the factors of others to it, and the least and largest credible value."""

    unit: str
    factors: dict[str, float]
    low: float
    high: float


# Ages above 89 are stored as 90, as NSRR codes them (45 CFR 164.514(b)(2)(i)(C): ages over 89 go into one category).
OLDEST = 90.0
QUANTITIES = {
    "age": Quantity("years", {"years": 1.0, "months": 1 / 12, "days": 1 / 365.25}, 0, 120),
    "bmi": Quantity("kg/m2", {"kg/m2": 1.0}, 5, 150),
    "ahi": Quantity("events/h", {"events/h": 1.0}, 0, 300),
}
SEXES = ("female", "male")
# Texts that stand for no value in every table: SAS writes a point, R and pandas these words.
NO_VALUE = ("", ".", "na", "nan")


class SubjectColumn(Config):
    """A fact about a person, and the column that contains it."""

    column: str = Field(description="The title of the column.", examples=["age_s1"])
    unit: str = Field(
        default="",
        description="The unit of `age` (`years`, the default, `months` or `days`), `bmi` (`kg/m2`) or `ahi` (`events/h`).",
        examples=["days"],
    )
    codes: dict[str, str] = Field(
        default_factory=dict,
        description="What each code in the column means. Codes that are not listed count as unknown; build and doctor say how "
        "many there are. Whole numbers are compared by value. Without `codes` only numbers are kept.",
        examples=[{"1": "male", "2": "female"}],
    )
    missing: tuple[str, ...] = Field(
        default=(),
        description="Codes that mean no value, besides an empty cell, `.`, `NA` and `NaN`.",
        examples=[["-1", "not reported"]],
    )


class SubjectTable(Config):
    """A table (CSV with titles in the first row) with a row per person, or per person and visit."""

    files: tuple[str, ...] = Field(
        min_length=1,
        description="Patterns of its file name, in order of preference, with `*`, `?` and `[...]`. It is searched for in the "
        "folder of the recordings that doctor or build is given, in `datasets` in it, and in `datasets` of the folders in it. If "
        "a pattern fits several files, the latest version counts.",
        examples=[["lake-people-[0-9]*.csv"]],
    )
    key: str = Field(description="The column with the person, written as in file names.", examples=["person"])
    key_pattern: str = Field(
        default="",
        description="If the column has more than the person: a regular expression with a group `subject` around the person. Rows "
        "that it does not fit are skipped.",
        examples=["^lake-(?P<subject>\\d+)$"],
    )
    digits: int | None = Field(
        default=None,
        ge=1,
        le=12,
        description="Number of digits in file names, if the table has the number without leading zeros.",
        examples=[4],
    )
    lower: bool = Field(default=False, description="Whether file names have the key in lower case.", examples=[True])
    visits: tuple[str, ...] = Field(
        default=(),
        description="Visits that the table is about, written as in file names; by default all.",
        examples=[["baseline"]],
    )
    visit: str = Field(
        default="", description="The column with the visit, if a person has a row for each visit.", examples=["visit_number"]
    )
    visit_codes: dict[str, str] = Field(
        default_factory=dict,
        description="For each value of that column, the visit as written in file names. Rows with other values are left out. "
        "Not needed if both are written in the same way.",
        examples=[{"BL": "1"}],
    )
    family: str = Field(
        default="",
        description="The column with the family. People of one family are put into the same split.",
        examples=["household"],
    )
    columns: dict[str, SubjectColumn] = Field(
        description="Facts about a person: `age`, `sex` (`female` or `male`), `bmi`, `ahi`, and any other name of lower-case "
        "letters, digits and _.",
    )

    @field_validator("key_pattern")
    @classmethod
    def _names_a_subject(cls, value: str) -> str:
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        if value and "subject" not in groups:
            raise ValueError("has no group `subject`; put (?P<subject>...) around the part that names the person")
        return value

    @model_validator(mode="after")
    def _known(self) -> SubjectTable:
        for name, column in self.columns.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"columns.{name}: use only lower-case letters, digits and _ in the name")
            if name in QUANTITIES:
                units = QUANTITIES[name].factors
                if column.codes or (column.unit and column.unit not in units):
                    raise ValueError(f"columns.{name}: is a number in one of {', '.join(units)}, and has no codes")
            elif column.unit:
                raise ValueError(f"columns.{name}: only {', '.join(QUANTITIES)} have a unit")
            if name == "sex" and (not column.codes or set(column.codes.values()) - set(SEXES)):
                raise ValueError(f"columns.sex: needs codes whose meanings are {' or '.join(SEXES)}")
        if self.visit_codes and not self.visit:
            raise ValueError("visit_codes needs the column `visit`")
        return self


SubjectsUse = Literal["if_found", "ignore"]
