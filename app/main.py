"""The app: one language, one visitor and one list of pages for all of them. Who is nobody yet sees none of them."""

from html import escape
from urllib.parse import urlsplit

import streamlit as st

from agrikd import accounts, door, site
from agrikd.access import Access
from agrikd.door import ENTER, LEFT, LOGOUT

PAGES = {
    "live": "videocam",
    "compare": "compare",
    "review": "rule",
    "history": "calendar_month",
    "devices": "memory",
    "models": "model_training",
}
HAND_IN = """export default async ({ data, parentElement }) => {
  const answer = await fetch(data.address, { method: "POST", body: data.cookie });
  if (answer.ok) location.reload();
  else parentElement.textContent = data.refused;
};"""


def sign_in() -> None:
    """Of an account that is known, the browser gets the door's cookie, and comes back as somebody."""
    folder, said = site.Field.here().folder, st.user.to_dict()
    access, address = Access(folder), accounts.address(said)
    name = accounts.named(address, access.users)
    if LEFT in st.query_params and st.user.is_logged_in:
        st.logout()
    elif not st.user.is_logged_in or not accounts.fresh(said):
        several = accounts.providers(folder)
        for one in several:
            text = words["access.account_of"].format(name=site.literal(one)) if several[1:] else words["access.account"]
            st.button(text, key=one, type="primary", width="stretch", on_click=st.login, args=(one,))
        if access.passwords:
            here = urlsplit(st.context.url or "").path
            st.html(f'<a href="{door.sign_in(here)}" target="_self">{escape(words["access.by_password"])}</a>')
    elif name:
        texts = {"address": ENTER, "cookie": access.cookie(name), "refused": words["access.refused"]}
        st.components.v2.component("agrikd_hand_in", js=HAND_IN)(data=texts, key="hand_in")
    else:
        st.text(words["access.unknown" if address else "access.unverified"].format(address=said.get("email") or "–"))
        st.button(words["access.leave"], on_click=st.logout)


st.set_page_config(page_title="agrikd", page_icon="🌿", layout="wide")
known, visitor = site.languages(), site.visitor()
asked = st.query_params.get("language", "")
preferred = (st.context.locale or "").partition("-")[0]
st.session_state.setdefault("language", next(one for one in (asked, preferred, "en") if one in known))
place = st.sidebar if visitor else st.container(horizontal_alignment="center").container(width=352)
with place:
    if visitor is None:
        st.title("agrikd")
    st.selectbox("Language / Idioma", list(known), format_func=known.__getitem__, key="language")
words = site.words(st.session_state.language)
if visitor is None:
    with place:
        sign_in()
    st.stop()
with place:
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
