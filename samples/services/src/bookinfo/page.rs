//! What bookinfo looks like: two pages and a stylesheet, with nothing fetched from elsewhere.

use std::fmt::{self, Display, Write};

use super::model::{Details, Product, Rating, Review, Reviews};

/// Served as `/static/bookinfo.css`.
pub(super) const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #2b2622; --quiet: #6f665d; --cloth: #faf7f2; --card: #fff;
  --thread: #d8cfc2; --accent: #7a3b2e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ece6de; --quiet: #a89f94; --cloth: #1d1a18; --card: #262220; --thread: #453e38;
    --accent: #d98b73; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--cloth); font: 16px/1.55 Georgia, serif; }
header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; padding: .8rem 1.5rem;
  border-bottom: 3px double var(--thread); }
header a.name { flex: 1; font-weight: bold; color: inherit; text-decoration: none; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem; }
h1 { margin: .3em 0; line-height: 1.2; }
a { color: var(--accent); }
.parts { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
section { padding: 1rem 1.3rem; background: var(--card); border: 1px solid var(--thread); }
h2 { margin: 0 0 .6rem; font-size: 1.1rem; color: var(--accent); }
dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem 1.2rem; margin: 0; }
dt, .quiet, figcaption { color: var(--quiet); }
dd { margin: 0; }
figure { margin: 0 0 1.1rem; }
blockquote { margin: 0; }
.stars { letter-spacing: .15em; }
.stars.black { color: var(--ink); }
.missing { padding-left: .8rem; border-left: 4px solid var(--accent); }
input, button { font: inherit; padding: .2rem .6rem; }
";

/// The page of one product. A part that is `None` did not come.
pub(super) fn product(
    product: &Product,
    user: Option<&str>,
    details: Option<&Details>,
    reviews: Option<&Reviews>,
) -> String {
    let mut html = String::with_capacity(4096);
    head(&mut html, &product.title, user);
    put(&mut html, format_args!("<h1>{}</h1>\n", Text(&product.title)));
    put(&mut html, format_args!("{}\n<div class=\"parts\">\n", product.description_html));
    details_part(&mut html, details);
    reviews_part(&mut html, reviews);
    html.push_str("</div>\n</main>\n</body>\n</html>\n");
    html
}

/// The start page: what this is, and whom it will call.
pub(super) fn index(peers: &[(&str, String)]) -> String {
    let mut html = String::with_capacity(2048);
    head(&mut html, "A small bookshop", None);
    html.push_str(
        "<h1>A small bookshop</h1>\n<p>One book, four services: this one puts the page together, \
         <i>details</i> knows the facts, <i>reviews</i> what people say, and asks <i>ratings</i> for \
         the stars.</p>\n<p><a href=\"/productpage\">To the book</a></p>\n\
         <section>\n<h2>Whom this service calls</h2>\n<dl>\n",
    );
    for (name, address) in peers {
        put(&mut html, format_args!("<dt>{}</dt><dd>{}</dd>\n", Text(name), Text(address)));
    }
    html.push_str("</dl>\n</section>\n</main>\n</body>\n</html>\n");
    html
}

fn head(html: &mut String, title: &str, user: Option<&str>) {
    put(
        html,
        format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Bookinfo: {}</title>\n<link rel=\"stylesheet\" href=\"/static/bookinfo.css\">\n\
             </head>\n<body>\n<header>\n<a class=\"name\" href=\"/productpage\">Bookinfo</a>\n",
            Text(title)
        ),
    );
    match user {
        Some(user) => put(
            html,
            format_args!(
                "<span>Signed in as <b>{}</b></span> <a href=\"/logout\">Sign out</a>\n",
                Text(user)
            ),
        ),
        None => html.push_str(
            "<form method=\"post\" action=\"/login\"><input name=\"username\" placeholder=\"jason\" \
             aria-label=\"User name\" required pattern=\"[A-Za-z0-9._\\-]+\" maxlength=\"64\"> \
             <button>Sign in</button></form>\n",
        ),
    }
    html.push_str("</header>\n<main>\n");
}

fn details_part(html: &mut String, details: Option<&Details>) {
    html.push_str("<section id=\"details\">\n<h2>Book details</h2>\n");
    match details {
        Some(details) => {
            html.push_str("<dl>\n");
            let (year, pages) = (details.year.to_string(), details.pages.to_string());
            let rows: [(&str, &str); 8] = [
                ("Author", &details.author),
                ("Year", &year),
                ("Type", &details.binding),
                ("Pages", &pages),
                ("Publisher", &details.publisher),
                ("Language", &details.language),
                ("ISBN-10", &details.isbn_10),
                ("ISBN-13", &details.isbn_13),
            ];
            for (name, value) in rows {
                put(html, format_args!("<dt>{name}</dt><dd>{}</dd>\n", Text(value)));
            }
            html.push_str("</dl>\n");
        }
        None => missing(html, "Product details could not be fetched!"),
    }
    html.push_str("</section>\n");
}

fn reviews_part(html: &mut String, reviews: Option<&Reviews>) {
    html.push_str("<section id=\"reviews\">\n<h2>Book reviews</h2>\n");
    match reviews {
        Some(reviews) => {
            for review in &reviews.reviews {
                review_figure(html, review);
            }
            put(
                html,
                format_args!("<p class=\"quiet\">Reviews served by <code>{}</code>", Text(&reviews.podname)),
            );
            if let Some(cluster) = &reviews.clustername {
                put(html, format_args!(" in cluster <code>{}</code>", Text(cluster)));
            }
            html.push_str("</p>\n");
        }
        None => missing(html, "Product reviews could not be fetched!"),
    }
    html.push_str("</section>\n");
}

fn review_figure(html: &mut String, review: &Review) {
    put(html, format_args!("<figure>\n<blockquote>{}</blockquote>\n", Text(&review.text)));
    put(html, format_args!("<figcaption>{}</figcaption>\n", Text(&review.reviewer)));
    match &review.rating {
        Some(Rating::Stars { stars, color }) => {
            let given = usize::from(*stars).min(5);
            // Black is a class, for black stars on a dark screen are none.
            let look = if color == "black" {
                "class=\"stars black\"".to_owned()
            } else {
                format!("class=\"stars\" style=\"color: {}\"", Color(color))
            };
            put(
                html,
                format_args!(
                    "<div {look} role=\"img\" aria-label=\"{given} of 5 stars\">{}{}</div>\n",
                    "★".repeat(given),
                    "☆".repeat(5 - given)
                ),
            );
        }
        Some(Rating::Unavailable { error }) => missing(html, error),
        None => {}
    }
    html.push_str("</figure>\n");
}

fn missing(html: &mut String, sentence: &str) {
    put(html, format_args!("<p class=\"missing\">{}</p>\n", Text(sentence)));
}

fn put(html: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = html.write_fmt(text);
}

/// Text, with what means something in HTML escaped.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A colour by name or number, without what could leave the style it stands in.
struct Color<'a>(&'a str);

impl Display for Color<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '#';
        f.write_str(if self.0.chars().all(plain) { self.0 } else { "inherit" })
    }
}

#[cfg(test)]
mod tests {
    use super::{Color, Text, product};
    use crate::bookinfo::model::{Product, Rating, Review, Reviews};

    #[test]
    fn text_and_colours_cannot_break_out() {
        assert_eq!(Text("<a href='x'>\"&\"").to_string(), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;");
        for (color, shown) in [("red", "red"), ("#ff0000", "#ff0000"), ("red\"><script>", "inherit")] {
            assert_eq!(Color(color).to_string(), shown);
        }
    }

    #[test]
    fn stars_are_between_none_and_five() {
        let book = Product { id: 0, title: "T".to_owned(), description_html: String::new() };
        for (stars, shown) in [(0, "☆☆☆☆☆"), (3, "★★★☆☆"), (200, "★★★★★")] {
            let review = Review {
                reviewer: "R".to_owned(),
                text: "<i>".to_owned(),
                rating: Some(Rating::Stars { stars, color: "red".to_owned() }),
            };
            let reviews = Reviews {
                id: "0".to_owned(),
                podname: "pod".to_owned(),
                clustername: None,
                reviews: vec![review],
            };
            let html = product(&book, None, None, Some(&reviews));
            assert!(html.contains(&format!(">{shown}<")) && html.contains("&lt;i&gt;"), "{html}");
        }
    }
}
