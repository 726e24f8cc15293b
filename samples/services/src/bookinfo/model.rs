//! What the services tell each other, as JSON. The field names are those of Istio's sample.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The one book of the shop.
pub(crate) const TITLE: &str = "A Midsummer Night's Dream";

/// What the shop says of it.
pub(crate) const DESCRIPTION: &str = "Four lovers lose their way in a wood near Athens, a weaver \
    wakes with the head of an ass, and the queen of the fairies does not mind. By morning every thread \
    is back in its place.";

/// Those who wrote the reviews. Ratings are found by these names.
pub(crate) const REVIEWERS: [&str; 2] = ["Reviewer1", "Reviewer2"];

/// Facts about a book: the answer of `/details/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    pub id: u64,
    pub author: String,
    pub year: u16,
    #[serde(rename = "type")]
    pub binding: String,
    pub pages: u32,
    pub publisher: String,
    pub language: String,
    #[serde(rename = "ISBN-10")]
    pub isbn_10: String,
    #[serde(rename = "ISBN-13")]
    pub isbn_13: String,
}

/// The answer of `/reviews/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reviews {
    /// The product's number. A string here, for Istio's reviews say it so.
    pub id: String,
    /// The replica that answered.
    pub podname: String,
    /// The cluster it runs in, if it was told.
    pub clustername: Option<String>,
    pub reviews: Vec<Review>,
}

/// What one person says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Review {
    pub reviewer: String,
    pub text: String,
    /// Absent where ratings are switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
}

/// One person's stars, or why there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Rating {
    Stars { stars: u8, color: String },
    Unavailable { error: String },
}

/// The answer of `/ratings/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratings {
    pub id: u64,
    /// Stars, 1 to 5, by reviewer.
    pub ratings: BTreeMap<String, u8>,
}

/// One entry of `/api/v1/products`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub id: u64,
    pub title: String,
    #[serde(rename = "descriptionHtml")]
    pub description_html: String,
}
