"""What several responses are made of. A response model reads the attributes of a domain object.

A field whose name on the wire differs from the attribute names it by `validation_alias`.
"""

from datetime import datetime
from typing import Annotated

from pydantic import AliasPath, BaseModel, BeforeValidator, ConfigDict, Field

from metering.ids import Currency, CustomerId
from metering.money import plain

# An exact decimal, written as text without an exponent.
Exact = Annotated[str, BeforeValidator(plain)]
# Whether something happened, from the moment at which it did.
Happened = Annotated[bool, BeforeValidator(lambda moment: moment is not None)]
# The number of a row, as text: every id on the wire is one.
Number = Annotated[str, BeforeValidator(str)]
Metadata = dict[str, bool | int | float | str]


class View(BaseModel):
    """A response that is read from a domain object."""

    model_config = ConfigDict(from_attributes=True)


class CustomerWallet(View):
    """A wallet. All amounts in minor units; `remainder`: what is below one, as a decimal text."""

    customer_id: CustomerId = Field(validation_alias=AliasPath("wallet", "customer_id"))
    currency: Currency = Field(validation_alias=AliasPath("wallet", "currency"))
    balance: int = Field(validation_alias=AliasPath("wallet", "balance_minor"))
    # What may be spent now: the balance without what is frozen or has just expired, plus the
    # overdraft limit. Alerts and top-ups look at the same amount without that limit.
    available_balance: int = Field(validation_alias="available_minor")
    # How far below zero a debit that is not usage may go. Usage is always debited.
    overdraft_limit: int = Field(validation_alias=AliasPath("wallet", "overdraft_limit_minor"))
    # In lots whose payment is in dispute.
    frozen: int = Field(validation_alias=AliasPath("wallet", "frozen_minor"))
    remainder: Exact = Field(validation_alias=AliasPath("wallet", "remainder"))
    created_at: datetime
    updated_at: datetime
