//! Happy eyeballs (RFC 8305): a host with several addresses is tried at one after the other,
//! without waiting for the end of an attempt that takes long. The first that connects wins.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::cluster::HappyEyeballs;

/// The next attempt begins after this time, if the one before has not ended.
const HEAD_START: Duration = Duration::from_millis(300);

/// Addresses in the order in which they are tried: families take turns.
pub(super) fn order(first: SocketAddr, others: &[SocketAddr], config: HappyEyeballs) -> Vec<SocketAddr> {
    let v4_first = config.v4_first.unwrap_or(first.is_ipv4());
    let of = |v4: bool| {
        let all = std::iter::once(first).chain(others.iter().copied());
        all.filter(move |address| address.is_ipv4() == v4)
    };
    let (mut preferred, mut rest) = (of(v4_first), of(!v4_first));
    let mut ordered = Vec::with_capacity(1 + others.len());
    while ordered.len() <= others.len() {
        ordered.extend(preferred.by_ref().take(config.first_count.max(1)));
        ordered.extend(rest.by_ref().take(1));
    }
    ordered
}

/// Tries all; the error is that of the attempt that failed last.
pub(super) async fn race<T, E>(
    addresses: Vec<SocketAddr>,
    attempt: impl AsyncFn(SocketAddr) -> Result<T, E>,
) -> Result<T, E> {
    let mut attempts = FuturesUnordered::new();
    let mut addresses = addresses.into_iter();
    loop {
        let more = match addresses.next() {
            Some(address) => {
                attempts.push(attempt(address));
                addresses.len() > 0
            }
            None => false,
        };
        let head_start = async {
            if more {
                tokio::time::sleep(HEAD_START).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            Some(ended) = attempts.next() => match ended {
                Ok(connection) => return Ok(connection),
                Err(error) if !more && attempts.is_empty() => return Err(error),
                Err(_) => {}
            },
            () = head_start => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use expect_test::{Expect, expect};
    use tokio::time::Instant;

    use super::{Duration, HappyEyeballs, SocketAddr, order, race};

    #[test]
    fn families_take_turns() {
        let check = |config: HappyEyeballs, addresses: &str, expected: &Expect| {
            let addresses: Vec<SocketAddr> =
                addresses.split(' ').map(|text| text.parse().expect("an address")).collect();
            let ordered: Vec<String> =
                order(addresses[0], &addresses[1..], config).iter().map(ToString::to_string).collect();
            expected.assert_eq(&ordered.join(" "));
        };
        let default = HappyEyeballs::default();
        check(default, "1.1.1.1:1", &expect!["1.1.1.1:1"]);
        check(
            default,
            "1.1.1.1:1 1.1.1.2:1 [::1]:1 [::2]:1",
            &expect!["1.1.1.1:1 [::1]:1 1.1.1.2:1 [::2]:1"],
        );
        check(default, "[::1]:1 1.1.1.1:1 1.1.1.2:1", &expect!["[::1]:1 1.1.1.1:1 1.1.1.2:1"]);
        let v6 = HappyEyeballs { v4_first: Some(false), first_count: 2 };
        check(
            v6,
            "1.1.1.1:1 1.1.1.2:1 [::1]:1 [::2]:1 [::3]:1",
            &expect!["[::1]:1 [::2]:1 1.1.1.1:1 [::3]:1 1.1.1.2:1"],
        );
        check(v6, "1.1.1.1:1 1.1.1.2:1", &expect!["1.1.1.1:1 1.1.1.2:1"]);
    }

    /// Races addresses of which the port says what happens: after so many milliseconds, an error
    /// if it is odd.
    async fn play(ports: &[u16]) -> (Result<u16, u16>, u128, String) {
        let start = Instant::now();
        let begun = RefCell::new(String::new());
        let addresses = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
        let result = race(addresses, async |address: SocketAddr| {
            *begun.borrow_mut() += &format!("{}@{} ", address.port(), start.elapsed().as_millis());
            tokio::time::sleep(Duration::from_millis(address.port().into())).await;
            if address.port().is_multiple_of(2) { Ok(address.port()) } else { Err(address.port()) }
        })
        .await;
        (result, start.elapsed().as_millis(), begun.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_connects_wins() {
        assert_eq!(play(&[50, 10]).await, (Ok(50), 50, "50@0 ".to_owned()));
        // A failure makes way at once, slowness after a while.
        assert_eq!(play(&[51, 10]).await, (Ok(10), 61, "51@0 10@51 ".to_owned()));
        assert_eq!(play(&[1000, 100, 2]).await, (Ok(100), 400, "1000@0 100@300 ".to_owned()));
        assert_eq!(play(&[500, 1000]).await, (Ok(500), 500, "500@0 1000@300 ".to_owned()));
        assert_eq!(play(&[501, 11]).await, (Err(501), 501, "501@0 11@300 ".to_owned()));
        assert_eq!(play(&[11, 501]).await, (Err(501), 512, "11@0 501@11 ".to_owned()));
    }
}
