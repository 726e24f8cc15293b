//! Quantities as Kubernetes writes them: `250m`, `1Gi`, `1e3`.

/// An amount, in billionths: `n` is the smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(u128);

const BILLION: u128 = 1_000_000_000;

impl Quantity {
    /// A whole number.
    pub fn units(number: u64) -> Quantity {
        Quantity(u128::from(number) * BILLION)
    }

    /// Thousandths, as processors are counted.
    pub fn thousandths(number: u64) -> Quantity {
        Quantity(u128::from(number) * (BILLION / 1000))
    }

    /// Reads one that is not negative.
    pub fn read(text: &str) -> Option<Quantity> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let mut value =
            if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()?.checked_mul(BILLION)? };
        let digits: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
        value = value.checked_add(digits.parse().ok()?)?;
        let power = |base: u128, exponent: u32| base.checked_pow(exponent);
        Some(Quantity(match suffix {
            "" => value,
            "n" => value / BILLION,
            "u" => value / 1_000_000,
            "m" => value / 1000,
            "k" => value.checked_mul(power(1000, 1)?)?,
            "M" => value.checked_mul(power(1000, 2)?)?,
            "G" => value.checked_mul(power(1000, 3)?)?,
            "T" => value.checked_mul(power(1000, 4)?)?,
            "P" => value.checked_mul(power(1000, 5)?)?,
            "E" => value.checked_mul(power(1000, 6)?)?,
            "Ki" => value.checked_mul(power(1024, 1)?)?,
            "Mi" => value.checked_mul(power(1024, 2)?)?,
            "Gi" => value.checked_mul(power(1024, 3)?)?,
            "Ti" => value.checked_mul(power(1024, 4)?)?,
            "Pi" => value.checked_mul(power(1024, 5)?)?,
            "Ei" => value.checked_mul(power(1024, 6)?)?,
            exponent => {
                let number = exponent.strip_prefix(['e', 'E'])?;
                match number.strip_prefix('-') {
                    Some(number) => value / power(10, number.parse().ok()?)?,
                    None => value.checked_mul(power(10, number.trim_start_matches('+').parse().ok()?)?)?,
                }
            }
        }))
    }

    /// How many of the divisor it is, rounded up.
    pub fn in_units_of(self, divisor: Quantity) -> u128 {
        self.0.div_ceil(divisor.0.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::Quantity;

    #[test]
    fn as_kubernetes_writes_them() {
        for (text, divisor, expected) in [
            ("250m", "1", Some(1)),
            ("250m", "1m", Some(250)),
            ("2", "1", Some(2)),
            ("1.5", "1m", Some(1500)),
            ("1Gi", "1Mi", Some(1024)),
            ("128974848", "1", Some(128_974_848)),
            ("129e6", "1M", Some(129)),
            ("123Mi", "1Ki", Some(125_952)),
            ("", "1", None),
            ("Gi", "1", None),
            ("1x", "1", None),
        ] {
            let found = Quantity::read(text);
            assert_eq!(found.map(|it| it.in_units_of(Quantity::read(divisor).unwrap())), expected, "{text}");
        }
    }
}
