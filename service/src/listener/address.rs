//! Addresses of clients: which peers are trusted proxies, which client a proxy speaks for, and how many connections an
//! address may have.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, de};

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: u128,
    /// Bits that count, of the 128 of an IPv6 address; IPv4 addresses are mapped.
    bits: u32,
}

/// The text is not a range of addresses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected an address or a range like 10.0.0.0/8")]
pub struct CidrError;

impl Cidr {
    /// Whether the range has an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(number(address), self.bits) == self.network
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.network), self.bits)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length: u32 = length.map_or(Ok(most), |length| length.parse().map_err(|_| CidrError))?;
        if length > most {
            return Err(CidrError);
        }
        let bits = 128 - most + length;
        Ok(Self { network: masked(number(address), bits), bits })
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An address as one number: IPv4 addresses as their mapped IPv6 ones, so that both forms are one address.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

const fn masked(number: u128, bits: u32) -> u128 {
    if bits == 0 { 0 } else { number & (u128::MAX << (128 - bits)) }
}

/// The client that a request comes from. Only what trusted proxies say is believed: from the right, the first address that
/// is no trusted proxy. `Forwarded` (RFC 7239) is read where there is no `X-Forwarded-For`.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[Cidr]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(address));
    if !is_trusted(peer) {
        return peer;
    }
    let mut client = peer;
    for hop in hops(headers).into_iter().rev() {
        // What is not an address was not written by a proxy that we know: the one before it is the last that is known.
        let Some(address) = hop else { break };
        client = address;
        if !is_trusted(address) {
            break;
        }
    }
    client
}

fn hops(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let listed = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(|hop| hop.trim().to_owned()).collect()
    };
    let hops = listed("x-forwarded-for");
    if !hops.is_empty() {
        return hops.iter().map(|hop| address(hop)).collect();
    }
    let of = |hop: &String| {
        let pairs = hop.split(';').filter_map(|pair| pair.split_once('='));
        let mut named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
        named.next().and_then(|(_, node)| address(node.trim().trim_matches('"')))
    };
    listed("forwarded").iter().map(of).collect()
}

/// An address, with or without a port: `1.2.3.4:5`, `[::1]:5`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = |text: &str| text.trim_matches(['[', ']']).parse().ok();
    bare(text).or_else(|| text.rsplit_once(':').and_then(|(address, _)| bare(address)))
}

/// How many connections each address has; no more than `max`, where it is not 0. Addresses of an IPv6 network of 64 bits,
/// which one subscriber has, count as one.
pub(super) struct Addresses {
    max: usize,
    counts: Mutex<HashMap<u128, usize>>,
}

/// A place of an address, given back when it is dropped; nothing where addresses have no limit.
pub(super) struct AddressPlace(Option<(Arc<Addresses>, u128)>);

impl AddressPlace {
    /// Of a connection that is not counted.
    pub(super) const UNCOUNTED: Self = Self(None);

    pub(super) const fn is_counted(&self) -> bool {
        self.0.is_some()
    }
}

impl Addresses {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default() })
    }

    /// A place, or `None` where the address has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressPlace> {
        if self.max == 0 {
            return Some(AddressPlace::UNCOUNTED);
        }
        let address = address.to_canonical();
        let group = masked(number(address), if address.is_ipv4() { 128 } else { 64 });
        let mut counts = self.counts.lock();
        let count = counts.entry(group).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(AddressPlace(Some((Arc::clone(self), group))))
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let Some((addresses, group)) = &self.0 else { return };
        let mut counts = addresses.counts.lock();
        if let Some(count) = counts.get_mut(group) {
            *count -= 1;
            if *count == 0 {
                counts.remove(group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_range_has_the_addresses_of_its_network_and_no_others() {
        let range: Cidr = "10.1.0.0/16".parse().unwrap();
        assert!(range.contains(ip("10.1.255.255")) && range.contains(ip("::ffff:10.1.2.3")));
        assert!(!range.contains(ip("10.2.0.0")) && !range.contains(ip("::1")));
        assert!("::/0".parse::<Cidr>().unwrap().contains(ip("1.2.3.4")));
        assert!("fd00::/8".parse::<Cidr>().unwrap().contains(ip("fdff::1")));
        assert!("127.0.0.1".parse::<Cidr>().unwrap().contains(ip("127.0.0.1")));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "host", "::/129", "10.0.0.0/8/8"] {
            assert_eq!(wrong.parse::<Cidr>(), Err(CidrError), "{wrong}");
        }
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
        let trusted: Vec<Cidr> = ["10.0.0.0/8", "::1"].iter().map(|text| text.parse().unwrap()).collect();
        let of = |peer: &str, pairs: &[(&'static str, &'static str)]| client(ip(peer), &headers(pairs), &trusted);
        assert_eq!(of("9.9.9.9", &[("x-forwarded-for", "1.1.1.1")]), ip("9.9.9.9"), "a stranger is not believed");
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.1.1.1")]), ip("1.1.1.1"));
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 10.0.0.2")]), ip("1.1.1.1"));
        let split = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")];
        assert_eq!(of("10.0.0.1", &split), ip("1.1.1.1"));
        assert_eq!(of("10.0.0.1", &[("x-forwarded-for", "1.1.1.1, unknown")]), ip("10.0.0.1"));
        assert_eq!(of("10.0.0.1", &[]), ip("10.0.0.1"));
        assert_eq!(of("::1", &[("x-forwarded-for", "1.1.1.1:80")]), ip("1.1.1.1"));
        let forwarded = [("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:4711\";proto=https")];
        assert_eq!(of("10.0.0.1", &forwarded), ip("2001:db8::1"));
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.1.1.1")];
        assert_eq!(of("10.0.0.1", &both), ip("1.1.1.1"));
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let addresses = Addresses::new(2);
        let first = addresses.enter(ip("2001:db8::1"));
        let second = addresses.enter(ip("2001:db8::2"));
        assert!(first.is_some() && second.is_some());
        assert!(addresses.enter(ip("2001:db8::3")).is_none(), "one network, one subscriber");
        assert!(addresses.enter(ip("1.2.3.4")).is_some());
        drop(first);
        assert!(addresses.enter(ip("2001:db8::3")).is_some());
        drop(second);
        assert!(addresses.counts.lock().is_empty());
        assert!(Addresses::new(0).enter(ip("1.2.3.4")).is_some_and(|place| place.0.is_none()));
    }
}
