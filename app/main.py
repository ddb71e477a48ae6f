"""The app: one language, one visitor and one list of pages for all of them."""

from html import escape

import streamlit as st

from agrikd import site
from agrikd.door import LOGOUT

PAGES = {
    "live": "videocam",
    "compare": "compare",
    "review": "rule",
    "history": "calendar_month",
    "devices": "memory",
    "models": "model_training",
}

st.set_page_config(page_title="agrikd", page_icon="🌿", layout="wide")
known, visitor = site.languages(), site.visitor()
asked = st.query_params.get("language", "")
preferred = (st.context.locale or "").partition("-")[0]
st.session_state.setdefault("language", next(one for one in (asked, preferred, "en") if one in known))
with st.sidebar:
    st.selectbox("Language / Idioma", list(known), format_func=known.__getitem__, key="language")
words = site.words(st.session_state.language)
with st.sidebar:
    if visitor.name:
        st.text(words["access.who"].format(name=visitor.name))
        st.html(f'<a href="{LOGOUT}">{escape(words["access.leave"])}</a>')  # in this tab, whose stream ends with it
    if not visitor.reviews:
        st.caption(words["access.viewer"])
st.session_state.words, st.session_state.visitor = words, visitor
st.navigation(
    [
        st.Page(f"app_pages/{name}.py", title=words[f"{name}.title"], icon=f":material/{icon}:")
        for name, icon in PAGES.items()
    ]
).run()
