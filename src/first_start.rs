//! The first start in an empty data directory: secrets, and a demo business with a key, so that a message can be sent at
//! once.

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
/// API key of the demo business, in the data directory.
pub const DEMO_KEY_FILE: &str = "demo-key";
/// The demo business.
pub const DEMO_BUSINESS: &str = "demo";

/// Makes the data directory and the secrets that are not there yet.
pub fn prepare(data_dir: &Path) -> anyhow::Result<()> {
    let secrets = data_dir.join("secrets");
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&secrets).with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    for file in [JWT_SECRET_FILE, CONSOLE_SECRET_FILE] {
        let path = data_dir.join(file);
        if !path.exists() {
            let mut secret = [0; 48];
            rand::rng().fill_bytes(&mut secret);
            write_private(&path, &URL_SAFE_NO_PAD.encode(secret))?;
        }
    }
    Ok(())
}

/// Makes the demo business's key, unless there is one. Returns whether it was made now.
pub async fn demo_business(data_dir: &Path, keys: &dyn KeyStore, now: Timestamp) -> anyhow::Result<bool> {
    let path = data_dir.join(DEMO_KEY_FILE);
    if path.exists() {
        return Ok(false);
    }
    let business: BusinessId = DEMO_BUSINESS.parse()?;
    let permissions = Permission::ALL.into_iter().filter(|permission| *permission != Permission::Admin).collect();
    let minted = eshaar_auth::keys::mint(business, "made at the first start", permissions, None, now);
    keys.put(minted.stored).await?;
    write_private(&path, &minted.text)?;
    Ok(true)
}

/// Whether the data directory holds what the console needs: the demo business's key, and the secret of its links.
pub fn has_demo(data_dir: &Path) -> bool {
    [DEMO_KEY_FILE, CONSOLE_SECRET_FILE].iter().all(|file| data_dir.join(file).is_file())
}

/// The demo business's key.
pub fn demo_key(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join(DEMO_KEY_FILE);
    let key = fs::read_to_string(&path)
        .with_context(|| format!("no demo key at {}: has the server been started?", path.display()))?;
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
