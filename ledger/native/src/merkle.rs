//! Merkle roots over records' hashes: a tree per tenant, and a tree over these.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::{
    Hash, Misfit,
    content::{at, text},
};

const NODE: u8 = 1;
const TENANT_TAG: &[u8] = b"tollkeeper.merkle.tenant.v1";

/// Gives the root over records in sequence order, tenants in bytewise order of their names.
pub(crate) fn root_by_tenant(
    tenants: &[String],
    tenant: &[u32],
    hashes: &[&[u8]],
) -> Result<Hash, Misfit> {
    if tenant.len() != hashes.len() {
        return Err(Misfit::Columns);
    }
    let mut places: BTreeMap<&str, Vec<Hash>> = BTreeMap::new();
    for (&of, hash) in tenant.iter().zip(hashes) {
        let leaf = Hash::try_from(*hash).map_err(|_| Misfit::Columns)?;
        places
            .entry(at(tenants, of)?.as_str())
            .or_default()
            .push(leaf);
    }
    let mut bytes = Vec::with_capacity(128);
    let leaves = places
        .into_iter()
        .map(|(name, leaves)| {
            bytes.clear();
            text(&mut bytes, TENANT_TAG)?;
            text(&mut bytes, name.as_bytes())?;
            let count = u64::try_from(leaves.len()).map_err(|_| Misfit::Number)?;
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&root(leaves));
            Ok(Sha256::digest(&bytes).into())
        })
        .collect::<Result<Vec<Hash>, Misfit>>()?;
    Ok(root(leaves))
}

/// Gives the root over leaves; a node without a partner moves up as it is.
fn root(mut level: Vec<Hash>) -> Hash {
    let mut node = [NODE; 65];
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => {
                    let (_, children) = node.split_at_mut(1);
                    let (first, second) = children.split_at_mut(32);
                    first.copy_from_slice(left);
                    second.copy_from_slice(right);
                    Sha256::digest(node).into()
                }
                alone => alone.first().copied().unwrap_or_default(),
            })
            .collect();
    }
    level
        .first()
        .copied()
        .unwrap_or_else(|| Sha256::digest([]).into())
}
