//! The demo's one page.

use super::session::Visit;

/// Renders the page for a visit.
pub(super) fn render(backend: &str, visit: &Visit, client: Option<&str>) -> String {
    let Visit { id, visits, is_new, before } = visit;
    let hue = backend.bytes().fold(150_u32, |hue, byte| (hue * 31 + u32::from(byte)) % 360);
    let backend = escape(backend);
    let story = match (is_new, before) {
        (true, _) => "This is a new session.".to_owned(),
        (false, Some(before)) if *before == backend => {
            "The visit before was served here, too.".to_owned()
        }
        (false, Some(before)) => format!(
            "The visit before was served by <b>{}</b>: the session came along through the cache.",
            escape(before)
        ),
        (false, None) => String::new(),
    };
    let client = client.map_or_else(|| "directly".to_owned(), |c| format!("from {}", escape(c)));
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{backend} · tandem demo</title>
<style>
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center;
  font: 17px/1.5 system-ui, sans-serif; background: hsl({hue} 35% 94%); color: #1d2430 }}
main {{ background: #fff; padding: 2rem 2.5rem; border-radius: 14px; max-width: 30rem;
  border-top: 8px solid hsl({hue} 60% 45%); box-shadow: 0 8px 30px rgb(0 0 0 / .08) }}
h1 {{ margin: 0 0 .3em; font-size: 1.3rem }}
h1 b {{ color: hsl({hue} 60% 38%) }}
.count {{ font-size: 4.5rem; font-weight: 700; line-height: 1.1; margin: .2em 0 }}
small {{ color: #667085; word-break: break-all }}
a {{ color: hsl({hue} 60% 35%) }}
</style>
</head>
<body><main>
<h1>Served by backend <b>{backend}</b></h1>
<div class="count">{visits}</div>
<p>visits in this session. {story}</p>
<p><a href="/">Once more</a></p>
<small>session {id}<br>you came {client}<br>The count is not here: it lives in the cache, which
this backend knows only by its address. Kill this backend, or the cache's master, and go on.</small>
</main></body>
</html>
"#
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
