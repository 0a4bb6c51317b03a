"""The types of values that several keys share, and the base of every group of keys."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def no_truth_value(value: object) -> object:
    """Refuse `on` and `yes`, which YAML takes for true and pydantic for the number 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}: YAML reads on, yes, off and no so")
    return value


Whole = Annotated[int, BeforeValidator(no_truth_value)]
Real = Annotated[float, BeforeValidator(no_truth_value)]
Share = Annotated[Real, Field(ge=0.0, le=1.0)]
Positive = Annotated[Whole, Field(gt=0, lt=2**31)]
Count = Annotated[Whole, Field(ge=0, lt=2**31)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]  # what NumPy takes
Weight = Annotated[Real, Field(ge=0.0)]
Rate = Annotated[Real, Field(gt=0.0)]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


class Section(BaseModel):
    """A group of keys: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def left_out(self) -> dict[str, Any]:
        """The values of the keys that the file leaves out, those of sections below too; empty where there are none."""
        values, found = self.model_dump(mode="json"), dict[str, Any]()
        for name, value in self:
            if name not in self.model_fields_set:
                found[name] = values[name]
            elif isinstance(value, Section):
                found[name] = value.left_out()
            elif isinstance(value, list):
                sections = {
                    str(place): each.left_out() for place, each in enumerate(value) if isinstance(each, Section)
                }
                found[name] = {place: left_out for place, left_out in sections.items() if left_out}
        return {name: value for name, value in found.items() if value != {}}
