//! What the storage plugin is granted. Without these it reaches nothing outside of itself.

use super::{Group, Key, Origin, Shape};

const GRANT: Key = Key {
    value: "LIST",
    group: Group::Grants,
    origin: Origin::Ours,
    shape: Shape::List,
    ..Key::COMMON
};

pub(in super::super) static PLUGIN_SETTINGS: Key = Key {
    variable: "DATABROKER_PLUGIN_SETTINGS",
    flag: Some("databroker-plugin-settings"),
    help: "Settings of the plugin's own: a list of NAME=VALUE",
    reason: "A plugin sees neither the environment nor the settings of this process. What is secret belongs into DATABROKER_PLUGIN_SECRETS",
    remedy: "write a list such as [pool_size=8, mode=fast]; a value with a comma needs the list of YAML",
    ..GRANT
};

pub(in super::super) static PLUGIN_SECRETS: Key = Key {
    variable: "DATABROKER_PLUGIN_SECRETS",
    flag: Some("databroker-plugin-secrets"),
    help: "Secrets that the plugin may read: a list of NAME=FILE, each file of 64 KiB at most",
    reason: "A file is read whenever the plugin asks, so that it can be replaced without a restart; the log says who has read what, and never the content",
    remedy: "write a list such as [password=/run/secrets/password], each a file that this process can read",
    ..GRANT
};

pub(in super::super) static PLUGIN_DIRECTORIES: Key = Key {
    variable: "DATABROKER_PLUGIN_DIRECTORIES",
    flag: Some("databroker-plugin-directories"),
    help: "Directories that the plugin may use: a list of PATH_IN_PLUGIN=DIRECTORY, with :rw behind it where the plugin may write",
    reason: "A plugin that keeps its data in files needs one; no link and no .. leads out of it",
    remedy: "write a list such as [/data=/var/lib/databroker:rw], each a directory that is there and that this process can read",
    ..GRANT
};

pub(in super::super) static PLUGIN_ADDRESSES: Key = Key {
    variable: "DATABROKER_PLUGIN_ADDRESSES",
    flag: Some("databroker-plugin-addresses"),
    help: "Where the plugin may connect to by TCP: a list of HOST:PORT, the host a name, an address or a range such as 10.0.0.0/8",
    reason: "A name leads to public addresses only, since whoever answers for it could lead the plugin into your network: grant what is private, or the metadata service of a cloud, as an address. localhost leads to this machine",
    remedy: "write a list such as [db.example.com:5432, 10.0.0.5:5432, \"[fd00::5]:5432\"]",
    ..GRANT
};

pub(in super::super) static PLUGIN_HTTP_ORIGINS: Key = Key {
    variable: "DATABROKER_PLUGIN_HTTP_ORIGINS",
    flag: Some("databroker-plugin-http-origins"),
    help: "Where the plugin's HTTP requests may go: a list of https://HOST[:PORT] or http://HOST[:PORT]",
    reason: "A name leads to public addresses, and to those that DATABROKER_PLUGIN_ADDRESSES grants with the same port",
    remedy: "write a list such as [https://kv.example.com, http://localhost:2379], without paths",
    ..GRANT
};

pub(in super::super) static PLUGIN_OPEN: Key = Key {
    variable: "DATABROKER_PLUGIN_OPEN",
    flag: Some("databroker-plugin-open"),
    value: "NUMBER",
    default: "256",
    help: "How many files, directories, sockets and HTTP requests the plugin may have open at once, the streams of them included; 1 to 65536. A stream itself is not refused: it counts where one of the others is opened",
    reason: "They are open in this process, which has 1024 descriptors in all on many systems and needs one for each client's connection. A stream takes none of its own, but keeps that of its file open",
    remedy: "write a number from 1 to 65536",
    shape: Shape::Text,
    ..GRANT
};
