//! `$index`: records found by the network in their data.

use anyhow::ensure;
use serde_json::json;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::records::{any, deletion, json_struct, json_value, record, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "network.longest_prefix",
        "network.longest",
        "An address finds the record with the most specific network that contains it, and no other.",
        longest_prefix
    ),
    case!(
        "network.same_prefix",
        "network.longest",
        "Several records with the same most specific network are all found.",
        same_prefix
    ),
    case!(
        "network.ipv6",
        "network.longest",
        "IPv6 addresses work, and do not mix with IPv4.",
        ipv6
    ),
    case!(
        "network.prefix_lookup",
        "network.longest",
        "A prefix finds the most specific network that contains the whole of it.",
        prefix_lookup
    ),
    case!(
        "network.type_has_its_own",
        "network.by_type",
        "Another type's more specific network does not hide a record of the type asked for.",
        type_has_its_own
    ),
    case!(
        "network.no_address",
        "network.invalid",
        "A text that is no address or prefix finds nothing and is no error.",
        no_address
    ),
    case!(
        "network.invalid_in_data",
        "network.invalid",
        "A record whose `$index.cidr` is no prefix is stored and found by nothing.",
        invalid_in_data
    ),
    case!(
        "network.follows_changes",
        "network.changes",
        "Changed and deleted networks are found by what they are now.",
        follows_changes
    ),
    case!(
        "network.value_data",
        "network.longest",
        "Data of type Value counts as data of type Struct does.",
        value_data
    ),
    case!(
        "network.with_id",
        "network.lookup",
        "The lookup by id or network finds either.",
        with_id
    ),
];

async fn longest_prefix(broker: Broker) -> CheckResult {
    let record_type = networks(
        &broker,
        &[
            ("all", "0.0.0.0/0"),
            ("a", "10.0.0.0/8"),
            ("b", "10.1.0.0/16"),
            ("c", "10.1.2.3/32"),
            ("d", "192.168.0.0/24"),
        ],
    )
    .await?;
    for (address, expected) in [
        ("10.1.2.3", "c"),
        ("10.1.2.4", "b"),
        ("10.2.0.1", "a"),
        ("192.168.0.255", "d"),
        ("192.168.1.0", "all"),
        ("8.8.8.8", "all"),
    ] {
        finds(&broker, &record_type, address, &[expected]).await?;
    }
    Ok(())
}

async fn same_prefix(broker: Broker) -> CheckResult {
    let record_type = networks(
        &broker,
        &[("1", "10.1.0.0/16"), ("2", "10.1.0.0/16"), ("3", "10.0.0.0/8")],
    )
    .await?;
    finds(&broker, &record_type, "10.1.0.1", &["1", "2"]).await
}

async fn ipv6(broker: Broker) -> CheckResult {
    let record_type = networks(
        &broker,
        &[("4", "10.0.0.0/8"), ("6", "2001:db8::/32"), ("66", "2001:db8:1::/48")],
    )
    .await?;
    finds(&broker, &record_type, "2001:db8:1::1", &["66"]).await?;
    finds(&broker, &record_type, "2001:DB8:2::1", &["6"]).await?;
    finds(&broker, &record_type, "::1", &[]).await?;
    finds(&broker, &record_type, "10.0.0.1", &["4"]).await
}

async fn prefix_lookup(broker: Broker) -> CheckResult {
    let record_type = networks(&broker, &[("a", "10.0.0.0/8"), ("b", "10.1.0.0/16")]).await?;
    finds(&broker, &record_type, "10.1.2.0/24", &["b"]).await?;
    finds(&broker, &record_type, "10.1.0.0/16", &["b"]).await?;
    finds(&broker, &record_type, "10.0.0.0/12", &["a"]).await?;
    finds(&broker, &record_type, "0.0.0.0/0", &[]).await
}

async fn type_has_its_own(broker: Broker) -> CheckResult {
    let wide = networks(&broker, &[("wide", "10.0.0.0/8")]).await?;
    let narrow = networks(&broker, &[("narrow", "10.1.0.0/16")]).await?;
    finds(&broker, &wide, "10.1.2.3", &["wide"]).await?;
    finds(&broker, &narrow, "10.1.2.3", &["narrow"]).await
}

async fn no_address(broker: Broker) -> CheckResult {
    let record_type = networks(&broker, &[("all", "0.0.0.0/0"), ("all6", "::/0")]).await?;
    for text in [
        "",
        "x",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.0/33",
        "example.com",
        "10.0.0.1:80",
        "/8",
    ] {
        finds(&broker, &record_type, text, &[]).await?;
    }
    Ok(())
}

async fn invalid_in_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for (n, index) in [
        json!({ "cidr": "x" }),
        json!({ "cidr": "10.0.0.0/99" }),
        json!({ "cidr": 8 }),
        json!("10.0.0.0/8"),
        json!({}),
    ]
    .into_iter()
    .enumerate()
    {
        let data = any(&json_struct(&json!({ "$index": index })));
        broker.put_one(record(&record_type, &n.to_string(), data)).await?;
    }
    finds(&broker, &record_type, "10.0.0.1", &[]).await?;
    ensure!(
        broker.all(&record_type).await?.len() == 5,
        "not all records were stored"
    );
    Ok(())
}

async fn follows_changes(broker: Broker) -> CheckResult {
    let record_type = networks(&broker, &[("1", "10.1.0.0/16"), ("2", "10.0.0.0/8")]).await?;
    broker
        .put_one(record(&record_type, "1", network("172.16.0.0/12")))
        .await?;
    finds(&broker, &record_type, "10.1.0.1", &["2"]).await?;
    finds(&broker, &record_type, "172.16.0.1", &["1"]).await?;
    broker.put_one(deletion(&record_type, "1")).await?;
    finds(&broker, &record_type, "172.16.0.1", &[]).await?;
    broker.put_one(session_record(&record_type, "2", "alice")).await?;
    finds(&broker, &record_type, "10.1.0.1", &[]).await
}

async fn value_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let value = json_value(&json!({ "$index": { "cidr": "10.0.0.0/8" } }));
    broker.put_one(record(&record_type, "1", any(&value))).await?;
    finds(&broker, &record_type, "10.0.0.1", &["1"]).await
}

async fn with_id(broker: Broker) -> CheckResult {
    let record_type = networks(&broker, &[("1", "10.0.0.0/8"), ("10.0.0.1", "192.168.0.0/16")]).await?;
    let both = |text: &str| json!({ "$or": [{ "id": text }, { "$index": text }] });
    let found = broker.filter(&record_type, &both("10.0.0.1")).await?;
    ensure!(found == ["1", "10.0.0.1"], "found {found:?}");
    let found = broker.filter(&record_type, &both("10.0.0.2")).await?;
    ensure!(found == ["1"], "found {found:?}");
    Ok(())
}

/// Record data with a network.
fn network(cidr: &str) -> bytes::Bytes {
    any(&json_struct(&json!({ "$index": { "cidr": cidr }, "name": cidr })))
}

/// A type with these networks.
async fn networks(broker: &Broker, networks: &[(&str, &str)]) -> anyhow::Result<String> {
    let record_type = broker.unique();
    let records = networks
        .iter()
        .map(|(id, cidr)| record(&record_type, id, network(cidr)))
        .collect();
    broker.put(records).await?;
    Ok(record_type)
}

/// Checks which ids an address or prefix finds, in whatever order.
async fn finds(broker: &Broker, record_type: &str, address: &str, expected: &[&str]) -> CheckResult {
    let mut found = broker.filter(record_type, &json!({ "$index": address })).await?;
    found.sort();
    ensure!(found == expected, "{address:?} finds {found:?}, not {expected:?}");
    Ok(())
}
