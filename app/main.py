"""The app: one language and one list of pages for all of them."""

import streamlit as st

from agrikd import site

st.set_page_config(page_title="agrikd", page_icon="🌿", layout="wide")
known = site.languages()
asked = st.query_params.get("language", "")
preferred = (st.context.locale or "").partition("-")[0]
chosen = next(one for one in (st.session_state.get("language"), asked, preferred, "en") if one in known)
with st.sidebar:
    st.session_state.language = st.selectbox(
        "Language / Idioma", list(known), index=list(known).index(chosen), format_func=known.__getitem__
    )
st.session_state.words = site.words(st.session_state.language)
st.navigation(
    [st.Page("app_pages/live.py", title=st.session_state.words["live.title"], icon=":material/videocam:")]
).run()
