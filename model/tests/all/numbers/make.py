"""Writes numbers.tsv: what an independent implementation of libphonenumber says of numbers of every region.

    pip install phonenumbers==9.0.33    # the metadata that the crate `phonenumber` has, see Cargo.lock
    python model/tests/all/numbers/make.py > model/tests/all/numbers/numbers.tsv

A line is an E.164 number and a verdict: `valid`; `trunk` (valid once the national prefix behind the country code is left out);
`room` (not assigned to a kind, but within the outline of its plan, and without a prefix); or `invalid`. The numbers are examples
of every kind in every region, the same with the national prefix, and changed at random.
"""

import random
import re
import sys

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumber, PhoneNumberType, is_valid_number

KINDS = [
    value
    for name, value in vars(PhoneNumberType).items()
    if name.isupper() and name not in ("UNKNOWN", "FIXED_LINE_OR_MOBILE", "STANDARD_RATE")
]


def is_valid(code: int, national: str) -> bool:
    """The digits are taken as they stand: no prefix is removed, unlike by `parse`."""
    if not 2 <= len(national) <= 17:
        return False
    zeros = len(national) - len(national.lstrip("0"))
    if zeros == len(national):
        return False
    number = PhoneNumber(country_code=code, national_number=int(national))
    if zeros:
        number.italian_leading_zero = True
        number.number_of_leading_zeros = zeros
    return is_valid_number(number)


def has_room(code: int, national: str) -> bool:
    for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]:
        metadata = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
        leading = metadata.leading_digits
        if leading and not re.match(leading, national):
            continue
        prefixes = [prefix for prefix in ("0", metadata.national_prefix) if prefix]
        outline = metadata.general_desc.national_number_pattern
        if re.fullmatch(outline, national) and not national.startswith(tuple(prefixes)):
            return True
    return False


def examples():
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        prefix = PhoneMetadata.metadata_for_region(region).national_prefix
        for kind in KINDS:
            number = phonenumbers.example_number_for_type(region, kind)
            if number:
                yield number.country_code, phonenumbers.national_significant_number(number), prefix
    for code in sorted(phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS):
        number = phonenumbers.example_number_for_non_geo_entity(code)
        yield number.country_code, phonenumbers.national_significant_number(number), None


def main() -> None:
    random.seed(20)
    verdicts: dict[str, str] = {}

    def judge(code: int, national: str, otherwise: str) -> None:
        if 7 <= len(f"{code}{national}") <= 15:
            unassigned = "room" if has_room(code, national) else otherwise
            verdicts[f"+{code}{national}"] = "valid" if is_valid(code, national) else unassigned

    for code, national, prefix in examples():
        judge(code, national, "invalid")
        if prefix:
            judge(code, prefix + national, "trunk")
        for _ in range(2):
            changed = list(national)
            changed[random.randrange(min(4, len(changed)))] = random.choice("0123456789")
            number = f"+{code}{''.join(changed)}"
            if number not in verdicts:
                judge(code, "".join(changed), "invalid")
        judge(code, national + "1", "invalid")
    for number, verdict in sorted(verdicts.items()):
        sys.stdout.write(f"{number}\t{verdict}\n")


main()
