//! The gateway's settings: what is accepted keeps the bounds that are documented, and an error says where it is. The form of
//! the hosted proxy is read, too.

#![no_main]

use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sortie_gateway::{GatewayConfig, Upstream};

const DAY: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|text: &str| {
    match GatewayConfig::parse(text, Path::new("/etc/gateway.toml")) {
        Ok(config) => {
            assert!((1..=1024).contains(&config.routes.len()));
            let times = config.routes.values().filter_map(|route| route.deadline);
            for time in times.chain([config.shutdown_timeout, config.upstream.connect_timeout]) {
                assert!(time > Duration::ZERO && time <= DAY, "{time:?}");
            }
            for route in config.routes.values() {
                if let Upstream::Servers(servers) = &route.upstream {
                    assert!((1..=16).contains(&servers.len()));
                }
            }
        }
        Err(error) => {
            let said = error.to_string();
            let rest = said.strip_prefix("/etc/gateway.toml:").expect("the file");
            let line: usize = rest.split_once(':').expect("a line").0.parse().expect("a number");
            assert!((1..=text.matches('\n').count() + 1).contains(&line), "{said}");
        }
    }
    if let Err(error) = GatewayConfig::parse(text, Path::new("/etc/proxy.yaml")) {
        assert!(error.to_string().starts_with("/etc/proxy.yaml:"), "{error}");
    }
});
