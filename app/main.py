"""The app: one language, one visitor and one list of pages for all of them."""

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
chosen = next(one for one in (st.session_state.get("language"), asked, preferred, "en") if one in known)
with st.sidebar:
    st.session_state.language = st.selectbox(
        "Language / Idioma", list(known), index=list(known).index(chosen), format_func=known.__getitem__
    )
words = site.words(st.session_state.language)
with st.sidebar:
    if visitor.name:
        st.text(words["access.who"].format(name=visitor.name))
        st.link_button(words["access.leave"], LOGOUT)
    if not visitor.reviews:
        st.caption(words["access.viewer"])
st.session_state.words, st.session_state.visitor = words, visitor
st.navigation(
    [
        st.Page(f"app_pages/{name}.py", title=words[f"{name}.title"], icon=f":material/{icon}:")
        for name, icon in PAGES.items()
    ]
).run()
