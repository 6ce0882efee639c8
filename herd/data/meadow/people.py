"""The names of the meadow's people and towns, each spelt by hand in Latin, Devanagari and Thai letters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """One name in three scripts; gender is 'm', 'f' or '' for a town."""

    latin: str
    hindi: str
    thai: str
    gender: str = ""

    def spelt(self, lang: str) -> str:
        """Return the name as written in a language."""
        return self.hindi if lang == "hi" else self.thai if lang == "th" else self.latin


def names(table: str, gender: str = "") -> tuple[Name, ...]:
    """Read a table of names: three spellings apart by a space, entries apart by a comma."""
    return tuple(Name(*entry.split(), gender) for entry in table.split(","))


WOMEN = """Emma एमा เอ็มมา, Lisa लीसा ลิซ่า, Mira मीरा มีรา, Nora नोरा โนรา, Clara क्लारा คลารา, Ada एडा เอด้า,
Vera वेरा เวรา, Olga ओल्गा ออลกา, Rita रीता ริต้า, Sofia सोफ़िया โซเฟีย, Marta मार्ता มาร์ตา, Paula पाउला เปาลา,
Tina टीना ทีน่า, Yara यारा ยารา, Carmen कारमेन การ์เมน, Zoe ज़ोई โซอี้, Lola लोला โลล่า, Diana डायना ไดอาน่า,
Flora फ़्लोरा ฟลอร่า, Bianca बियांका เบียงก้า, Julia जूलिया จูเลีย, Karina करीना คาริน่า, Petra पेट्रा เพตรา,
Wanda वांडा วันด้า"""
MEN = """Otto ओटो ออตโต, Bruno ब्रूनो บรูโน, Marco मार्को มาร์โก, Nico निको นิโก้, Leo लियो ลีโอ, Timo टीमो ทิโม,
Pablo पाब्लो ปาโบล, Rafael राफ़ेल ราฟาเอล, Oscar ऑस्कर ออสการ์, Victor विक्टर วิกเตอร์, Daniel डैनियल แดเนียล,
Simon साइमन ไซมอน, Adam एडम อดัม, Emil एमिल เอมิล, David डेविड เดวิด, Gustav गुस्ताव กุสตาฟ, Anton एंटन อันตอน,
Milo मीलो ไมโล, Samuel सैमुअल ซามูเอล, Konrad कोनराड คอนราด, Dario दारियो ดาริโอ, Fabian फ़ेबियन ฟาเบียน,
Karim करीम คาริม, Ruben रूबेन รูเบน"""
STRANGE_WOMEN = """Wilma विल्मा วิลมา, Ulla उल्ला อุลลา, Greta ग्रेटा เกรตา, Pia पिया เปีย, Tamara तमारा ทามารา,
Nadia नादिया นาเดีย"""
STRANGE_MEN = """Quentin क्वेंटिन เควนติน, Edgar एडगर เอ็ดการ์, Enzo एंज़ो เอ็นโซ, Ralf राल्फ़ ราล์ฟ, Ludwig लुडविग ลุดวิก,
Viggo विगो วิกโก"""
TOWNS = """Lindal लिंडल ลินดาล, Marvik मारविक มาร์วิก, Torano तोरानो โตราโน, Belmora बेलमोरा เบลโมรา,
Kessel केसल เคสเซล,
Rivalta रिवाल्टा ริวัลตา, Sunport सनपोर्ट ซันพอร์ต, Vallona वलोना วัลโลนา, Nordau नॉर्डौ นอร์ดอ,
Ferrosa फ़ेरोसा เฟอร์โรซา,
Galvin गैल्विन กัลวิน, Pinara पिनारा ปินารา"""
