//! The first start in an empty data directory: secrets, a demo business with a key, so that a message can be sent at
//! once, and a key for operators.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_model::{BusinessId, Permission, Timestamp};
use eshaar_store::KeyStore;
use rand::RngCore as _;

/// Secret of the HS256 tokens that this installation issues, in the data directory.
pub const JWT_SECRET_FILE: &str = "secrets/jwt-secret";
/// Secret of console sessions, in the data directory.
pub const CONSOLE_SECRET_FILE: &str = "secrets/console-secret";
/// Master key of the secrets of webhooks, in the data directory.
pub const WEBHOOK_KEY_FILE: &str = "secrets/webhook-key";
/// API key of the demo business, in the data directory.
pub const DEMO_KEY_FILE: &str = "demo-key";
/// The demo business.
pub const DEMO_BUSINESS: &str = "demo";
/// API key of the operators, in the data directory.
pub const OPERATOR_KEY_FILE: &str = "operator-key";
/// The business of the operators' key.
pub const OPERATORS: &str = "operators";

/// Makes the data directory and the secrets that are not there yet.
pub fn prepare(data_dir: &Path) -> anyhow::Result<()> {
    let secrets = data_dir.join("secrets");
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&secrets).with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    for file in [JWT_SECRET_FILE, CONSOLE_SECRET_FILE, WEBHOOK_KEY_FILE] {
        let path = data_dir.join(file);
        if !path.exists() {
            let mut secret = [0; 48];
            rand::rng().fill_bytes(&mut secret);
            write_private(&path, &URL_SAFE_NO_PAD.encode(secret))?;
        }
    }
    Ok(())
}

/// Makes the keys of the demo business and of the operators, unless they are there. Returns whether the demo business's was
/// made now.
pub async fn keys(data_dir: &Path, keys: &dyn KeyStore, now: Timestamp) -> anyhow::Result<bool> {
    let all_but_admin = Permission::ALL.into_iter().filter(|permission| *permission != Permission::Admin).collect();
    make_key(data_dir, keys, (OPERATOR_KEY_FILE, OPERATORS), vec![Permission::Admin], now).await?;
    make_key(data_dir, keys, (DEMO_KEY_FILE, DEMO_BUSINESS), all_but_admin, now).await
}

async fn make_key(
    data_dir: &Path,
    keys: &dyn KeyStore,
    (file, business): (&str, &str),
    permissions: Vec<Permission>,
    now: Timestamp,
) -> anyhow::Result<bool> {
    let path = data_dir.join(file);
    if path.exists() {
        return Ok(false);
    }
    let business: BusinessId = business.parse()?;
    let minted = eshaar_auth::keys::mint(business, "made at the first start", permissions, None, now);
    keys.put(minted.stored).await?;
    write_private(&path, &minted.text)?;
    Ok(true)
}

/// Returns true if the data directory holds what the console needs: the keys that it calls with, and the secret of its links.
pub fn has_demo(data_dir: &Path) -> bool {
    [DEMO_KEY_FILE, OPERATOR_KEY_FILE, CONSOLE_SECRET_FILE].iter().all(|file| data_dir.join(file).is_file())
}

/// The demo business's key.
pub fn demo_key(data_dir: &Path) -> anyhow::Result<String> {
    key(data_dir, DEMO_KEY_FILE)
}

/// The operators' key.
pub fn operator_key(data_dir: &Path) -> anyhow::Result<String> {
    key(data_dir, OPERATOR_KEY_FILE)
}

fn key(data_dir: &Path, file: &str) -> anyhow::Result<String> {
    let path = data_dir.join(file);
    let key = fs::read_to_string(&path)
        .with_context(|| format!("no key at {}: has the server been started?", path.display()))?;
    Ok(key.trim().to_owned())
}

/// Writes a file that only its owner can read. It appears whole or not at all.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&draft, path)
    })();
    written.with_context(|| format!("cannot write {}", path.display()))
}
