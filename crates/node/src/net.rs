//! IPv4 prefixes: the networks of nodes and pods, which have IPv4 only.

use std::net::{AddrParseError, Ipv4Addr};
use std::str::FromStr;
use std::{fmt, num};

/// An IPv4 prefix, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Net {
    /// The address; bits after the prefix are ignored.
    pub address: Ipv4Addr,
    /// The number of bits that count, 0 to 32.
    pub prefix: u8,
}

impl Ipv4Net {
    /// The prefix that holds one address.
    pub fn host(address: Ipv4Addr) -> Ipv4Net {
        Ipv4Net { address, prefix: 32 }
    }

    /// The mask, for example 255.255.0.0 for a prefix of 16.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The first address: the given one without the bits after the prefix.
    pub fn network(self) -> Ipv4Addr {
        self.address & self.mask()
    }

    /// Whether an address is in the prefix.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network()
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// Why a text is not an IPv4 prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANet {
    /// The part before the slash.
    #[error("not an IPv4 address")]
    Address(#[from] AddrParseError),
    /// The part after the slash.
    #[error("the prefix length is not a number from 0 to 32")]
    Prefix,
}

impl From<num::ParseIntError> for NotANet {
    fn from(_: num::ParseIntError) -> NotANet {
        NotANet::Prefix
    }
}

impl FromStr for Ipv4Net {
    type Err = NotANet;

    /// Reads `10.0.0.0/8` or a single address.
    fn from_str(text: &str) -> Result<Ipv4Net, NotANet> {
        let Some((address, prefix)) = text.split_once('/') else { return Ok(Ipv4Net::host(text.parse()?)) };
        let prefix = prefix.parse()?;
        if prefix > 32 {
            return Err(NotANet::Prefix);
        }
        Ok(Ipv4Net { address: address.parse()?, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::Ipv4Net;

    #[test]
    fn prefixes() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let got = text.parse::<Ipv4Net>().map(|net| net.to_string()).map_err(|e| e.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "{text}");
        };
        check("10.1.2.3/8", Ok("10.0.0.0/8"));
        check("10.1.2.3/0", Ok("0.0.0.0/0"));
        check("10.1.2.3", Ok("10.1.2.3/32"));
        check("10.1.2.3/33", Err("the prefix length is not a number from 0 to 32"));
        check("10.1.2.3/", Err("the prefix length is not a number from 0 to 32"));
        check("10.1.2/8", Err("not an IPv4 address"));
        let net: Ipv4Net = "10.244.0.0/16".parse().unwrap();
        assert!(net.contains("10.244.255.1".parse().unwrap()));
        assert!(!net.contains("10.245.0.1".parse().unwrap()));
    }
}
