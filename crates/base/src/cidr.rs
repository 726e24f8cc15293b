//! Address ranges in CIDR notation, and the map that finds the longest one around an address.
//!
//! As in Envoy's `CidrRange`, the two families are apart: an IPv4 range does not contain the
//! IPv4-mapped IPv6 form of its addresses.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses. Host bits are always zero, so equal ranges are equal values. Ordered
/// by family (IPv4 first), address and length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// Why a text or a pair is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// The part before the slash is no address.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The part behind the slash is no number.
    #[error("{0:?} is not a prefix length")]
    Length(String),
    /// The length is greater than the address has bits.
    #[error("prefix length {length} is too long for {address}")]
    TooLong {
        /// The address as given.
        address: IpAddr,
        /// The length as given.
        length: u32,
    },
}

impl Cidr {
    /// The range of `length` leading bits around `address`; host bits are cleared.
    pub fn new(address: IpAddr, length: u32) -> Result<Self, CidrError> {
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        match u8::try_from(length) {
            Ok(length) if length <= bits => Ok(Self { address: mask(address, length), length }),
            _ => Err(CidrError::TooLong { address, length }),
        }
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// True if `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && mask(address, self.length) == self.address
    }

    /// True if every address of `other` lies inside.
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.address)
    }
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Reads `10.0.0.0/8`, `fe80::/10`, or an address alone.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address(address.to_owned()))?;
        let Some(length) = length else {
            return Ok(Self::host(address));
        };
        // `parse` would take a sign.
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CidrError::Length(length.to_owned()));
        }
        Self::new(address, length.parse().map_err(|_| CidrError::Length(length.to_owned()))?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Values by range; an address finds the value of the longest range that contains it.
///
/// One hash probe for each different length in use, longest first: a filter chain match has
/// two or three lengths, not 128.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrMap<T> {
    ranges: HashMap<Cidr, T>,
    /// Lengths in use, descending.
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
}

impl<T> Default for CidrMap<T> {
    fn default() -> Self {
        Self { ranges: HashMap::new(), v4_lengths: Vec::new(), v6_lengths: Vec::new() }
    }
}

impl<T> CidrMap<T> {
    /// Sets the value of a range and gives back the one that it had.
    pub fn insert(&mut self, range: Cidr, value: T) -> Option<T> {
        let lengths = if range.address.is_ipv4() { &mut self.v4_lengths } else { &mut self.v6_lengths };
        if let Err(position) = lengths.binary_search_by(|length| range.length.cmp(length)) {
            lengths.insert(position, range.length);
        }
        self.ranges.insert(range, value)
    }

    /// The longest range around `address`, and its value.
    pub fn longest(&self, address: IpAddr) -> Option<(Cidr, &T)> {
        self.matches(address).next()
    }

    /// All ranges around `address`, longest first.
    pub fn matches(&self, address: IpAddr) -> impl Iterator<Item = (Cidr, &T)> {
        let lengths = if address.is_ipv4() { &self.v4_lengths } else { &self.v6_lengths };
        lengths.iter().filter_map(move |length| {
            let range = Cidr { address: mask(address, *length), length: *length };
            self.ranges.get(&range).map(|value| (range, value))
        })
    }

    /// The value of exactly this range.
    pub fn find(&self, range: &Cidr) -> Option<&T> {
        self.ranges.get(range)
    }

    /// The value of exactly this range, to be changed.
    pub fn find_mut(&mut self, range: &Cidr) -> Option<&mut T> {
        self.ranges.get_mut(range)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// True if there is no range.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ranges, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Cidr, &T)> {
        self.ranges.iter()
    }
}

impl<T> FromIterator<(Cidr, T)> for CidrMap<T> {
    fn from_iter<I: IntoIterator<Item = (Cidr, T)>>(pairs: I) -> Self {
        let mut map = Self::default();
        for (range, value) in pairs {
            map.insert(range, value);
        }
        map
    }
}

/// A set of ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrSet(CidrMap<()>);

impl CidrSet {
    /// Adds a range; false if it was there.
    pub fn insert(&mut self, range: Cidr) -> bool {
        self.0.insert(range, ()).is_none()
    }

    /// True if some range contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.longest(address).is_some()
    }

    /// The longest range around `address`.
    pub fn longest(&self, address: IpAddr) -> Option<Cidr> {
        self.0.longest(address).map(|(range, ())| range)
    }

    /// True if there is no range.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All ranges, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Cidr> {
        self.0.iter().map(|(range, ())| range)
    }
}

impl FromIterator<Cidr> for CidrSet {
    fn from_iter<I: IntoIterator<Item = Cidr>>(ranges: I) -> Self {
        Self(ranges.into_iter().map(|range| (range, ())).collect())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: &Expect) {
        let shown = match text.parse::<Cidr>() {
            Ok(range) => range.to_string(),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parsing() {
        check("10.1.2.3/8", &expect!["10.0.0.0/8"]);
        check("10.1.2.3", &expect!["10.1.2.3/32"]);
        check("0.0.0.0/0", &expect!["0.0.0.0/0"]);
        check("fe80::1/10", &expect!["fe80::/10"]);
        check("::/0", &expect!["::/0"]);
        check("::1", &expect!["::1/128"]);
        check("10.0.0.0/33", &expect!["prefix length 33 is too long for 10.0.0.0"]);
        check("::/129", &expect!["prefix length 129 is too long for ::"]);
        check("10.0.0.0/", &expect![[r#""" is not a prefix length"#]]);
        check("10.0.0.0/+8", &expect![[r#""+8" is not a prefix length"#]]);
        check("10.0.0.0/99999999999", &expect![[r#""99999999999" is not a prefix length"#]]);
        check("10.0.0/8", &expect![[r#""10.0.0" is not an IP address"#]]);
        check("", &expect![[r#""" is not an IP address"#]]);
    }

    #[test]
    fn containment() {
        assert!(cidr("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!cidr("10.0.0.0/8").contains(ip("11.0.0.0")));
        assert!(cidr("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!cidr("0.0.0.0/0").contains(ip("::1")));
        assert!(!cidr("::/0").contains(ip("1.2.3.4")));
        assert!(!cidr("10.0.0.0/8").contains(ip("::ffff:10.0.0.1")));
        assert!(cidr("10.0.0.0/8").covers(&cidr("10.1.0.0/16")));
        assert!(!cidr("10.1.0.0/16").covers(&cidr("10.0.0.0/8")));
        assert!(cidr("9.0.0.0/8") < cidr("10.0.0.0/8") && cidr("10.0.0.0/8") < cidr("::/0"));
    }

    #[test]
    fn the_longest_range_wins() {
        let map: CidrMap<&str> = [
            (cidr("0.0.0.0/0"), "any"),
            (cidr("10.0.0.0/8"), "ten"),
            (cidr("10.1.0.0/16"), "ten-one"),
            (cidr("10.1.2.3/32"), "host"),
            (cidr("::/0"), "six"),
        ]
        .into_iter()
        .collect();
        let longest = |address: &str| map.longest(ip(address)).map(|(_, value)| *value);
        assert_eq!(longest("10.1.2.3"), Some("host"));
        assert_eq!(longest("10.1.2.4"), Some("ten-one"));
        assert_eq!(longest("10.2.0.0"), Some("ten"));
        assert_eq!(longest("8.8.8.8"), Some("any"));
        assert_eq!(longest("fe80::1"), Some("six"));
        let all: Vec<&str> = map.matches(ip("10.1.2.3")).map(|(_, value)| *value).collect();
        assert_eq!(all, ["host", "ten-one", "ten", "any"]);
        assert!(CidrSet::default().longest(ip("1.1.1.1")).is_none());
    }

    #[test]
    fn the_map_agrees_with_a_linear_scan() {
        let mut rng = crate::rng::Rng::new(5);
        let ranges: Vec<Cidr> = (0..300)
            .map(|_| {
                Cidr::new(Ipv4Addr::from_bits(rng.next_u32() & 0x0f0f_ffff).into(), rng.below(33) as u32)
                    .unwrap()
            })
            .collect();
        let set: CidrSet = ranges.iter().copied().collect();
        for _ in 0..3000 {
            let address = Ipv4Addr::from_bits(rng.next_u32() & 0x0f0f_ffff).into();
            let scanned =
                ranges.iter().filter(|range| range.contains(address)).max_by_key(|range| range.length());
            assert_eq!(set.longest(address), scanned.copied());
        }
    }
}
