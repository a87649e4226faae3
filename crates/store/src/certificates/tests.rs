use super::*;
use crate::testing::{Fixture, all, certificate, first, on_both};

on_both![
    two_are_active_at_most_and_archiving_makes_room,
    a_certificate_of_another_tunnel_is_not_found,
    pages_of_certificates,
];

async fn two_are_active_at_most_and_archiving_makes_room(f: Fixture) {
    let tunnel = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    let mut changes = f.store.changes();
    let a = f.store.add_certificate(&f.home, &tunnel, certificate("a"), &f.limits).await.expect("a").certificate;
    let b = f.store.add_certificate(&f.home, &tunnel, certificate("b"), &f.limits).await.expect("b").certificate;
    assert_eq!(a.fingerprint, Digest::of(b"a"));
    assert_eq!(a.expires_at.map(Timestamp::as_second), Some(1_900_000_000));
    for _ in 0..2 {
        assert_eq!(changes.recv().await.expect("change"), Change::CertificatesChanged(tunnel.clone()));
    }
    let full = f.store.add_certificate(&f.home, &tunnel, certificate("c"), &f.limits).await.expect_err("full");
    assert!(matches!(full, StoreError::TooManyCertificates(2)));

    let again = f.store.add_certificate(&f.home, &tunnel, certificate("a"), &f.limits).await.expect("known");
    assert!(!again.fresh);
    assert_eq!(again.certificate, a);
    assert!(changes.try_recv().is_err(), "a repetition changes nothing");
    assert_eq!(f.store.active_cas(&tunnel).await.expect("cas"), ["pem of b", "pem of a"]);

    let archived = f.store.archive_certificate(&f.home, &tunnel, &a.id).await.expect("archived");
    assert!(archived.fresh && archived.certificate.archived_at.is_some());
    assert_eq!(changes.recv().await.expect("change"), Change::CertificatesChanged(tunnel.clone()));
    let repeated = f.store.archive_certificate(&f.home, &tunnel, &a.id).await.expect("archived");
    assert!(!repeated.fresh);
    assert_eq!(repeated.certificate, archived.certificate);
    assert_eq!(f.store.get_certificate(&f.home, &tunnel, &a.id).await.expect("kept"), archived.certificate);

    f.store.add_certificate(&f.home, &tunnel, certificate("c"), &f.limits).await.expect("room again");
    f.store.archive_certificate(&f.home, &tunnel, &b.id).await.expect("archived");
    let a2 = f.store.add_certificate(&f.home, &tunnel, certificate("a"), &f.limits).await.expect("back").certificate;
    assert_ne!(a2.id, a.id, "an archived certificate can be registered anew");
    assert_eq!(f.store.list_certificates(&f.home, &tunnel, first(100)).await.expect("list").items.len(), 2);
    let everything = f.store.list_certificates(&f.home, &tunnel, all()).await.expect("list").items;
    assert_eq!(everything.len(), 4);
    assert_eq!(everything[0], a2);
}

async fn a_certificate_of_another_tunnel_is_not_found(f: Fixture) {
    let one = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    let two = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    let added = f.store.add_certificate(&f.home, &one, certificate("a"), &f.limits).await.expect("added");
    let id = &added.certificate.id;
    let none = |result| matches!(result, Err(StoreError::NotFound(Object::Certificate)));
    assert!(none(f.store.get_certificate(&f.home, &two, id).await.map(drop)));
    assert!(none(f.store.archive_certificate(&f.home, &two, id).await.map(drop)));
    f.store.add_certificate(&f.home, &two, certificate("a"), &f.limits).await.expect("one CA may serve two tunnels");
}

async fn pages_of_certificates(f: Fixture) {
    let tunnel = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    for name in ["a", "b", "c"] {
        let added = f.store.add_certificate(&f.home, &tunnel, certificate(name), &f.limits).await.expect("added");
        f.store.archive_certificate(&f.home, &tunnel, &added.certificate.id).await.expect("archived");
    }
    let page = PageRequest { limit: 2, ..all() };
    let newest = f.store.list_certificates(&f.home, &tunnel, page).await.expect("page");
    assert_eq!(newest.items.len(), 2);
    let rest = PageRequest { before: newest.next, ..page };
    let rest = f.store.list_certificates(&f.home, &tunnel, rest).await.expect("page");
    assert_eq!((rest.items.len(), rest.next), (1, None));
    assert_eq!(rest.items[0].fingerprint, Digest::of(b"a"));
}
