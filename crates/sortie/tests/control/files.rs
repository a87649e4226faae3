//! The policy file: without a good one nothing starts, a bad one later changes nothing, and what is in force is told.

use serde_json::{Value, json};

use crate::common::{SOON, World, run, send, sortie, until};
use crate::server::Server;
use crate::support::{Key, Point, grant, settings};

#[tokio::test]
async fn a_gateway_that_enforces_does_not_start_without_policies() {
    let world = World::start().await;
    let server = Server::start().await;
    let tunnel = world.tunnel("setup").await;
    let folder = world.home.join("folder.cedar");
    std::fs::create_dir(&folder).expect("folder");
    std::os::unix::fs::symlink("nowhere", world.home.join("dangling.cedar")).expect("link");
    let good = settings(&server, "", "");
    let broken = "permit(principal, action, resource) when { principal.colour == \"red\" };";
    for (what, file, text, said) in [
        ("missing", "missing.cedar", None, "missing.cedar"),
        ("empty", "empty.cedar", Some(""), "empty.cedar"),
        ("nothing but a comment", "comment.cedar", Some("// allow everything\n"), "comment.cedar"),
        ("broken", "broken.cedar", Some("permit(principal, action, resource"), "broken.cedar:1"),
        ("of what there is not", "colour.cedar", Some(broken), "colour.cedar:1"),
        ("not text", "bytes.cedar", None, "bytes.cedar"),
        ("a folder", "folder.cedar", None, "folder.cedar"),
        ("a link to nothing", "dangling.cedar", None, "dangling.cedar"),
        ("empty TOML", "empty.toml", Some(""), "empty.toml"),
        ("broken TOML", "broken.toml", Some("[[allow]]\ncallers = \n"), "broken.toml:2"),
        ("unknown in TOML", "unknown.toml", Some("[[alow]]\n"), "unknown.toml:1"),
    ] {
        if let Some(text) = text {
            world.home.write(file, text).expect("written");
        } else if file.starts_with("bytes") {
            world.home.write(file, [0xff, 0xfe, 0x00]).expect("written");
        }
        let config = good.replace("policy.cedar", file);
        let (mut process, ready) = world.spawn_gateway(&tunnel.dir, &config, &[]);
        let status = process.exit(SOON).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let output = process.output();
        assert_eq!(status.code(), Some(2), "{what}: {output}");
        assert!(output.contains(said), "{what}: `{said}` is not in: {output}");
        assert!(!ready.exists(), "{what}");
        // The check says the same without a start.
        let file = world.home.write("check.toml", config).expect("settings");
        let check = sortie(&world.home).args(["config", "check"]).arg(file);
        run(check).await.failed(2, &[said]);
    }
    let config = good.replace("policy_file = \"policy.cedar\"\n", "");
    let (mut process, _) = world.spawn_gateway(&tunnel.dir, &config, &[]);
    assert_eq!(process.exit(SOON).await.expect("it ends").code(), Some(2), "{}", process.output());
    assert!(process.output().contains("policy_file"), "{}", process.output());
}

/// What the health listener says of the settings in force.
async fn in_force(point: &Point) -> Value {
    send(point.world.http.get(format!("{}/readyz", point.gateway.health))).await.json()
}

#[tokio::test]
async fn a_file_that_breaks_later_leaves_the_old_policies_in_force_and_is_told() {
    let mut point = Point::start(|keys| grant(&keys[0], "up", &["read"])).await;
    let reader = point.keys[0].clone();
    for (round, broken) in
        ["permit(principal", "", "permit(principal, action, resource) when { 1 };"].iter().enumerate()
    {
        std::fs::write(&point.policy_file, broken).expect("written");
        let told = async || in_force(&point).await["config"]["ok"] == false;
        until(&format!("round {round} is told"), SOON, told).await;
        let said = in_force(&point).await;
        assert!(said["config"]["reason"].as_str().is_some_and(|reason| reason.contains("policy.cedar")), "{said}");
        assert_eq!(said["ready"], true, "what it serves it serves on: {said}");
        assert_eq!(point.call(&reader, "up", "read", &json!({})).await.status, 200, "round {round}");
        assert_eq!(point.call(&reader, "up", "delete", &json!({})).await.status, 403, "round {round}");
    }
    point.gateway.process.ready_output("policy.cedar", SOON).await.expect("the log names the file");
    std::fs::remove_file(&point.policy_file).expect("removed");
    assert_eq!(point.call(&reader, "up", "delete", &json!({})).await.status, 403);
    std::fs::write(&point.policy_file, grant(&reader, "up", &["delete"])).expect("written");
    let repaired = async || in_force(&point).await["config"]["ok"] == true;
    until("the repaired file is told", SOON, repaired).await;
    let repaired = async || point.call(&reader, "up", "delete", &json!({})).await.status == 200;
    until("the repaired file is in force", SOON, repaired).await;
    assert_eq!(point.call(&reader, "up", "read", &json!({})).await.status, 403);
}

#[tokio::test]
async fn a_change_of_a_file_that_the_policy_file_names_bites_too() {
    let point = Point::of("policy.toml", "", "", |keys| {
        // More than a file of settings may hold.
        format!("cedar = [\"more.cedar\"]\n# {}\n# {}\n", keys[0].id, "x".repeat(2 << 20))
    });
    let point = point.await;
    let [reader, other] = [point.keys[0].clone(), point.keys[1].clone()];
    let may = async |key: &Key| point.call(key, "up", "read", &json!({})).await.status;
    assert_eq!((may(&reader).await, may(&other).await), (403, 403));
    for (one, two) in [(&reader, &other), (&other, &reader), (&reader, &other)] {
        std::fs::write(&point.more_file, grant(one, "up", &["read"])).expect("written");
        until("it bites", SOON, async || (may(one).await, may(two).await) == (200, 403)).await;
    }
    std::fs::write(&point.more_file, "permit(").expect("written");
    until("it is told", SOON, async || in_force(&point).await["config"]["ok"] == false).await;
    assert_eq!((may(&reader).await, may(&other).await), (200, 403));
    std::fs::write(&point.more_file, grant(&other, "up", &["read"])).expect("written");
    until("the repair bites", SOON, async || (may(&reader).await, may(&other).await) == (403, 200)).await;
}

#[tokio::test]
async fn in_shadow_everything_passes_and_what_would_be_denied_is_told() {
    let mut point = Point::start(|keys| grant(&keys[0], "up", &["read"])).await;
    let reader = point.keys[0].clone();
    assert_eq!(point.call(&reader, "up", "delete", &json!({})).await.status, 403);
    let config = point.world.home.join("setup.toml");
    let text = std::fs::read_to_string(&config).expect("settings").replace("\"enforce\"", "\"shadow\"");
    std::fs::write(&config, text).expect("written");
    let passes = async || point.call(&reader, "up", "delete", &json!({})).await.status == 200;
    until("shadow is in force", SOON, passes).await;
    assert_eq!(point.call(&point.keys[1], "up", "pay", &json!({})).await.status, 200);
    assert!(point.server.ran().contains(&"pay".to_owned()));
    point.gateway.process.ready_output("shadow", SOON).await.expect("the log tells");
}
