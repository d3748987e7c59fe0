//! Where an FFN worker is, as users write it.

use std::fmt;
use std::str::FromStr;

/// A device of this process, or a worker elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `cpu`, `wgpu`, `wgpu:ADAPTER`, or several that compute a shard together, as `wgpu:0+wgpu:1`; the number tells apart
    /// several on the same device.
    Device {
        /// The device.
        name: String,
        /// Which of the pool's devices.
        index: usize,
    },
    /// `host:port`.
    Address(String),
}

impl Place {
    /// Places from a list such as `cpu,wgpu:0,10.0.0.7:4000`.
    ///
    /// # Errors
    /// When one of them is neither a device nor an address.
    pub fn list(list: &[String]) -> anyhow::Result<Vec<Self>> {
        let parse = |(index, text): (usize, &String)| {
            let place: Self = text.trim().parse().map_err(anyhow::Error::msg)?;
            Ok(match place {
                Self::Device { name, .. } => Self::Device { name, index },
                address @ Self::Address(_) => address,
            })
        };
        list.iter().enumerate().map(parse).collect()
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        let is_device = |name: &str| name == "cpu" || name.split(':').next() == Some("wgpu");
        match text.split(':').next() {
            _ if text.split('+').all(is_device) => Ok(Self::Device { name: text.to_owned(), index: 0 }),
            Some(host)
                if !["cpu", "wgpu"].contains(&host)
                    && port.is_some_and(|port| port.parse::<u16>().is_ok()) =>
            {
                Ok(Self::Address(text.to_owned()))
            }
            _ => Err(format!(
                "`{text}` is neither a device (cpu, wgpu, wgpu:0, wgpu:0+wgpu:1) nor an address (host:port)"
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { name, .. } => f.write_str(name),
            Self::Address(address) => f.write_str(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_from_addresses() {
        let list =
            ["cpu", "wgpu:0", "wgpu", "node-7:4000", "[::1]:9", "cpu", "wgpu:0+wgpu:1"].map(String::from);
        let places = Place::list(&list).unwrap();
        let device = |name: &str, index| Place::Device { name: name.to_owned(), index };
        assert_eq!(places[0], device("cpu", 0));
        assert_eq!(places[1], device("wgpu:0", 1));
        assert_eq!(places[3], Place::Address("node-7:4000".to_owned()));
        assert_eq!(places[4], Place::Address("[::1]:9".to_owned()));
        assert_eq!(places[5], device("cpu", 5));
        assert_eq!(places[6], device("wgpu:0+wgpu:1", 6));
        for wrong in [
            "",
            "cpu:1",
            "cpu+",
            "+cpu",
            "cpu+tpu",
            "wgpu:0+host:80",
            "host",
            "host:",
            ":80",
            "host:99999",
            "tpu:x",
        ] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
