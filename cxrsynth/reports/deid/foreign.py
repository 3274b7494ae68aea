"""Patterns of identifiers in German, French, Spanish, Italian, Portuguese, Vietnamese, Chinese, Japanese and Korean."""

import re

from cxrsynth.reports.deid.dates import OLD_AGES
from cxrsynth.reports.deid.people import names_a_person
from cxrsynth.reports.deid.pieces import CAPITAL, DAY, EXACT, MONTH, PARTICLES, PROPER, YEAR
from cxrsynth.reports.deid.rules import DIGITS, DIGITS_AND_CAPITALS, Rule, make_rule

_LONG_MONTH = (
    r"(?:januar|jänner|februar|märz|maerz|april|mai|juni|juli|august|september|oktober|november|dezember"
    r"|janvier|f[eé]vrier|mars|avril|juin|juillet|ao[uû]t|septembre|octobre|novembre|d[eé]cembre"
    r"|enero|febrero|marzo|abril|mayo|junio|julio|agosto|sep?tiembre|octubre|noviembre|diciembre"
    r"|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
    r"|janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro)"
)
_SHORT_MONTH = (
    r"(?:jan[vr]?|feb[br]?|f[eé]vr?|m[aä]r[zs]?|mrz|apr|avr|abr|mag|mai|may|jun|juin|giu|jul|juil|lug"
    r"|aug|ao[uû]|ago|sept?|set|ott|okt|oct"
    r"|out|nov|de[czs]|d[eé]c|dic|ene|gen)"
)
_LONG_MONTHS = (
    "januar jänner februar märz maerz april mai juni juli august september oktober november dezember "
    "janvier février fevrier mars avril juin juillet août aout septembre octobre novembre décembre "
    "decembre enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre "
    "diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre janeiro "
    "fevereiro março maio junho julho setembro outubro novembro dezembro"
)
_MONTHS_NEEDED = (
    "jan,jän,feb,fév,fev,mär,mar,maer,apr,avr,abr,mai,may,mag,jun,jui,giu,jul,lug,aug,aoû,aou,ago,sep,set,ott,okt,oct"
    ",out,nov,dez,déc,dec,dic,ene,gen"
)
_OF = r"(?:\s{0,2}(?:de[l]?|di|d')\s)?"
_OLD = r"(?:9\d|1[0-4]\d)"
_FOREIGN_NAME = rf"{PARTICLES}{PROPER}(?:\s{PARTICLES}{PROPER}){{0,4}}"
_LABELLED_NAME = rf"(?P<who>{_FOREIGN_NAME}(?:,\s{_FOREIGN_NAME})?)"
_HAN = r"[一-鿿々]"
_KANA = r"[぀-ヿー]"
_HANGUL = r"[가-힣]"
# Words that follow a Chinese or Korean label but are no name.
_HAN_NAME_IN_TWO = rf"{_HAN}{{1,3}}\s(?![男女性胸肺心年]){_HAN}{{1,3}}"  # Japanese: 長谷川 千鶴
_NO_HAN_NAME = r"(?![性主既入体今于可无有位仰诉病情取为坐已])"

# Days before a month, in any language: English months would be taken without the `5.` before or after them.
_ENGLISH_MONTH = MONTH.removesuffix(r"\.?")  # the full stop may end the sentence
_ANY_MONTH = rf"(?:{_LONG_MONTH}|{_ENGLISH_MONTH})(?!\w)"
# English months that German has, too: after `5.` any other would open a sentence ("of rib 5. May be old").
_GERMAN_TOO = r"(?:Apr(?:il)?|Aug(?:ust)?|Sept?(?:ember)?|Nov(?:ember)?|Jan|Feb|Jun|Jul)"
_ENGLISH_DAY = rf"{DAY}(?:st\b|nd\b|rd\b|th\b)?"
_DAY = rf"{DAY}(?:\.|º|ª|er\b|°|st\b|nd\b|rd\b|th\b)?"
_TO = (
    r"(?:\s?[-/+,\u2013\u2014]\s?|\s(?:bis(?:\szum)?|und|u\.|zum|au|et|al?|y|e|ao?|até|hasta|fino al|à|to|and"
    r"|through|until|till|thru)\s)(?:the\s)?"
)
_THEN_YEAR = rf"(?:[\s/.,-]{{1,2}}(?:del?\s)?{YEAR}(?!\d))?"
DAYS_OF_MONTHS: tuple[Rule, ...] = (
    make_rule(
        "date",
        rf"(?<![\w.]){_DAY}{_TO}{_DAY}(?:[\s-]{{0,2}}(?:of\s|del?\s|di\s)?){_ANY_MONTH}{_THEN_YEAR}",
        digits=2,
        needs=_MONTHS_NEEDED,
        if_true=lambda match: (
            not re.search(r"\bmay\b|\.\s?Ma(?:y|r(?:ch)?)\b", match[0])
        ),  # "ribs 3-5 may be fractured"
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"\b{MONTH}\s(?:the\s)?{_ENGLISH_DAY}{_TO}{_ENGLISH_DAY}"
        rf"(?![\w%]|[./]\d|\s?(?:mm|cm|ml|views?|images?)\b){_THEN_YEAR}",
        digits=2,
        needs=_MONTHS_NEEDED,
        if_true=lambda match: match[0][0].isupper(),
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}\.\s?{_GERMAN_TOO}(?!\w){_THEN_YEAR}",
        digits=1,
        needs=_MONTHS_NEEDED,
        if_true=lambda match: re.search(r"[A-Z]", match[0]) is not None,
        starts=DIGITS,
    ),
)
FOREIGN: tuple[Rule, ...] = (
    make_rule(
        "age",
        rf"(?<!\d)(?<!\d[.,]){_OLD}(?:[.,]5)?\s?-?\s?(?:ans\b|años\b|anos\b|anni\b|jahren?\b|-?jährig\w{{0,4}}"
        rf"|-?jaehrig\w{{0,4}}|[岁歳才]|세|살|tuổi\b)",
        digits=2,
        numbers=OLD_AGES,
        starts=DIGITS,
    ),
    make_rule(
        "age",
        rf"(?:\b(?:edad|âge|age|alter|età|idade|tuổi)|年龄|年齢|年齡|나이|연령)\s?:?\s?{_OLD}(?!\d|[.,]\d)",
        digits=2,
        numbers=OLD_AGES,
        needs="edad,âge,age,alter,età,idade,tuổi,年,나이,연령",
    ),
    make_rule(
        "age",
        r"\bquatre-vingt-(?:dix|onze|douze|treize|quatorze|quinze|seize)[\w-]{0,8}\sans\b"
        r"|\bnovent[ae]\w{0,3}(?:\s[yei]\s\w{2,7})?\s(?:años|anos|anni)\b"
        r"|\bnovant\w{1,9}\sanni\b|\b\w{0,16}neunzig(?:\w{0,12}jährig\w{0,4}|\sjahre)",
        needs="quatre,novent,novant,neunzig",
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}(?:\.|º|ª|er\b"
        rf"|°)?[\s/.-]{{0,2}}{_OF}{_LONG_MONTH}(?![\w])(?:[\s/.,-]{{1,2}}(?:del?\s)?(?:{YEAR}|\d\d(?!\d)))?",
        digits=1,
        needs=_MONTHS_NEEDED,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<![\w.]){DAY}\.?[\s/.-]{{1,2}}{_SHORT_MONTH}\.?[\s/.-]{{1,2}}(?:{YEAR}|\d\d)(?!\d)",
        digits=3,
        needs=_MONTHS_NEEDED,
        starts=DIGITS,
    ),
    make_rule(
        "date",
        rf"(?<!\w){_LONG_MONTH}\s(?:del?\s)?(?:{YEAR}|\d\d(?!\d))",
        digits=2,
        needs=_MONTHS_NEEDED,
    ),
    make_rule(
        "date",
        rf"(?<!\w)(?:im|seit|vom|ab|bis|en|desde|em|in|dal|nel|depuis|le|el|del|du|au)\s(?:mois de\s|mes "
        rf"de\s)?(?!mars\b|mai\b|mayo\b|set\b){_LONG_MONTH}(?!\w)",
        words=_LONG_MONTHS,
    ),
    make_rule("date", r"星期[一二三四五六日天]|[月火水木金土日]曜日?|[월화수목금토일]요일", beyond_ascii=True),
    make_rule(
        "date",
        r"\b(?:montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonnabend|sonntag|lundi|mardi"
        r"|mercredi|jeudi|vendredi|samedi|dimanche|lunes|martes|mi[eé]rcoles|jueves|viernes"
        r"|s[aá]bado|domingo|luned[iì]|marted[iì]|mercoled[iì]|gioved[iì]|venerd[iì]|sabato|domenica"
        r"|(?:segunda|terça|quarta|quinta|sexta)-feira)\b"
        r"|\bthứ (?:hai|ba|tư|năm|sáu|bảy)\b|\bchủ nhật\b",
        words=(
            "montag dienstag mittwoch donnerstag freitag samstag sonnabend sonntag lundi mardi mercredi "
            "jeudi vendredi samedi dimanche lunes martes miércoles miercoles jueves viernes sábado sabado "
            "domingo lunedì martedì mercoledì giovedì venerdì lunedi martedi mercoledi giovedi venerdi "
            "domenica feira thứ chủ"
        ),
    ),
    make_rule(
        "date",
        rf"(?:ngày\s)?\d{{1,2}}\stháng\s\d{{1,2}}(?:,?\snăm\s{YEAR}|[/\s]{YEAR})?"
        rf"|tháng\s\d{{1,2}}(?:\snăm\s|/|-){YEAR}|năm\s{YEAR}",
        digits=2,
        needs="tháng,năm",
    ),
    make_rule(
        "date",
        r"(?:(?:19|20)?\d\d|[一二三四五六七八九零〇○]{2,4}|(?:令和|平成|昭和|民国|民國)\s?(?:\d{1,3}|元))\s?年(?!龄|齢|前"
        r"|来)(?:\s?(?:\d{1,2}|[一-十]{1,3})\s?月(?:\s?(?:\d{1,2}|[一二三四五六七八九十]{1,3})\s?[日号號])?)?"
        r"|(?:\d{1,2}|[一二三四五六七八九十]{1,3})\s?月\s?(?:\d{1,2}|[一二三四五六七八九十]{1,3})\s?[日号號]",
        needs="年,月",
    ),
    make_rule(
        "date",
        r"(?:19|20)?\d\d\s?년(?:\s?\d{1,2}\s?월(?:\s?\d{1,2}\s?일)?)?|\d{1,2}\s?월\s?\d{1,2}\s?일",
        digits=2,
        needs="년,월",
    ),
    make_rule("date", r"\bkw\s?\d{1,2}\b", digits=1, needs="kw"),
    make_rule(
        "time",
        r"(?<![\w.])(?:[01]?\d|2[0-4])(?:[.:][0-5]\d)?\s?uhr\b|\bum\s(?:[01]?\d|2[0-4])[.:][0-5]\d",
        digits=1,
        needs="uhr,um ",
    ),
    make_rule(
        "time",
        r"\b(?:alle|ore|às|as|a las)\s(?:ore\s)?(?:[01]?\d|2[0-4])[.:,h][0-5]\d\b|\b(?:[01]?\d"
        r"|2[0-4])(?:[.:,][0-5]\d)?\s(?:horas|heures?|ore)\b",
        digits=1,
        words="alle ore às as las hora horas heure heures",
    ),
    make_rule(
        "time",
        r"(?:[01]?\d|2[0-4])\s?[時时点點]\s?(?:[0-5]?\d\s?分|半)?(?!钟方)|(?:[01]?\d"
        r"|2[0-4])\s?시(?:\s?[0-5]?\d\s?분)?|\b(?:[01]?\d|2[0-4])\sgiờ(?:\s?[0-5]\d)?(?:\sphút)?",
        digits=1,
        beyond_ascii=True,
    ),
    # Record, case, insurance and personal numbers by their labels.
    make_rule(
        "number",
        r"(?<![\w-])(?:(?:fall|pat(?:ienten)?|auftrags?|aufnahme|akten|befund|untersuchungs?"
        r"|versicherten|ahv|avs|(?:renten|sozial)?versicherungs?|vers|krankenkassen|kv|personal|ausweis|serien|geräte|archiv|buch"
        r"|identifikations|id)"
        r"[.-]{0,2}\s?(?:nr\b\.?|nummer|id\b|zeichen)|aktenzeichen|az\.|nhc|cip|nass|nuss|dni|nie|nif"
        r"|cpf|rg|cns|cartão sus|sus|crm|colegiado|(?:n[uú]mero|num|n[oº°]?\.?"
        r"|núm\.?)\s(?:de\s)?(?:historia(?: cl[ií]nica)?"
        r"|expediente|afiliación|paciente|registro|prontuário|atendimento|dossier|patient|examen|exame"
        r"|s[eé]rie|s[eé]curit[eé] sociale|cartella|pratica|tessera|pedido|orden|carteirinha)"
        r"|historia(?: cl[ií]nica)?"
        r"|h\.?c\.?|expediente|prontuário|registro|atendimento|pront\.|ipp|nip|nir|nda|iep|dossier"
        r"|matricule|n[º°]|nosologico|cartella(?: clinica)?|codice(?: fiscale| paziente)?|c\.?f\."
        r"|tessera(?: sanitaria)?|id paziente|id paciente"
        r"|mã (?:số|bn|bệnh nhân|hồ sơ|y tế|khám)(?:\s(?:bệnh nhân|bn))?|số (?:hồ sơ|bệnh án|phiếu|thẻ"
        r"|bhyt|cmnd|cccd|nhập viện|vào viện)|bhyt|cmnd|cccd|sttb?)"
        r"\s?(?:nr\b\.?|n\.|n[º°o]\b\.?|de\s\w{3,12}"
        r"|:)?\s?[:#.]?\s?(?:[a-z]{1,6}[-/ ]?)?\d(?:[\w./-]{1,40}|(?=\s\d{2}\s\d))(?:\s(?:\d{2,6}|2[ab])(?!\w)){0,8}",
        digits=2,
    ),
    make_rule(
        "number",
        rf"(?:{_HAN}{{0,6}}(?:号|號|番号|编号|編號|号码|ID)|患者ID"
        rf"|{_HANGUL}{{0,6}}번호)\s?[:.#]?\s?(?:[a-z]{{1,4}}[-/]?)?\d[\w-]{{1,40}}",
        digits=2,
        beyond_ascii=True,
    ),
    make_rule(
        "phone",
        r"(?:电话|電話|手机|手機|内线|內線|内線|전화|연락처|내선|điện thoại|\bsdt|\bsđt|\bđt)(?:番号|号码"
        r"|번호)?\s?[:.]?\s?\+?\d[\d\s().-]{1,20}\d",
        digits=3,
        beyond_ascii=True,
    ),
    make_rule(
        "place",
        r"(?<!\w)(?:zimmer|bett|chambre|salle|sala|cama|habitación|stanza|letto|quarto|leito|enfermaria"
        r"|phòng|giường|buồng|lit|cubículo|planta|etage|étage|piano|andar|tầng|box)\s(?:nr\.?\s|n[º°]\s?"
        r"|número\s|số\s)?[a-z]?-?\d{1,4}-?[a-z]?\b(?!\s?(?:mm|cm|ml))",
        digits=1,
        words=(
            "zimmer bett chambre salle sala cama habitación stanza letto quarto leito enfermaria phòng "
            "giường buồng lit cubículo planta etage étage piano andar tầng box"
        ),
    ),
    make_rule(
        "place",
        r"\d{1,4}\s?[号號]?(?:病?床|病?[室房]|号室|病棟|病区)|[床]位?\s?:?\s?\d{1,4}|\d{1,4}\s?호\s?(?:실|병실)?(?!선)|(?:병실"
        r"|침대|병동)\s?\d{1,4}",
        digits=1,
        beyond_ascii=True,
    ),
    # Titles and labels of people.
    make_rule(
        "name",
        r"(?<![\w'\u2019-])(?i:herrn?|frau|hr\.|fr\.|fam\.|oberarzt|oberärztin|oa|chefarzt|chefärztin|ca"
        r"|assistenzarzt|assistenzärztin|facharzt|fachärztin|dr\.?|dra\.?|dres\.|med\.|prof\.?|pd"
        r"|priv\.-doz\."
        r"|mta|mtra|mtr|arzt|ärztin|m\.|mme|mlle|mr|monsieur|madame|docteur|pr\.?|professeur|sr\.?"
        r"|sra\.?|srta\.?|doña|don|d\.|dña\.?|señora?|doctora?|sig\.?(?:ra|na)?|signora?|dott\.?(?:ssa)?"
        r"|dott\.ssa|dr\.ssa|ing\.|téc\."
        r"|senhora?|enf\.?(?:ª)?|bs\.?(?:ck(?:i{1,2}|1|2)\.?)?|ths\.?|ts\.?|pgs\.?|gs\.?|bác s[iĩ]|ông"
        r"|bà|anh|chị|ktv\.?)\s(?:(?:Dr|Prof|med|Dott|BS)\.?\s){0,3}" + _LABELLED_NAME,
        flags=EXACT,
        if_true=names_a_person,
        words=(
            "herr herrn frau hr fr fam oberarzt oberärztin oa chefarzt chefärztin ca assistenzarzt "
            "assistenzärztin facharzt fachärztin dr dra dres med prof pd priv mta mtra mtr arzt ärztin m "
            "mme mlle mr monsieur madame docteur pr professeur sr sra srta doña don d dña señor señora "
            "doctor doctora sig signor signora signorina dott ssa ing téc senhor senhora enf bs bsck bscki "
            "bsckii ths ts pgs gs bác ông bà anh chị ktv"
        ),
    ),
    make_rule(
        "name",
        r"(?<![\w'\u2019-])(?i:patient(?:in|en|e)?|paciente|paziente|name(?: des patienten| der patientin)?"
        r"|vorname|nachname|geburtsname|nom(?: de naissance| du patient| de famille)?|prénom|nombre(?: "
        r"del paciente)?|apellidos?|nome(?: do paciente| del paziente)?|cognome|sobrenome"
        r"|họ(?: và)?(?: tên)?|tên(?: bệnh nhân)?|bệnh nhân|bn|người bệnh|médecin|medico|médico"
        r"|radiologue|radiólogo|radiologo|arzt|radiologe|untersucher|befunder|zuweiser|überweiser|prescripteur"
        r"|solicitante"
        r"|bs (?:đọc|chỉ định)|bác s[iĩ](?: đọc| chỉ định)?|z\.\s?hd\.|madre|padre|mãe|pai)"
        r"(?:\s?[:=]\s?|\s)" + _LABELLED_NAME,
        flags=EXACT,
        if_true=names_a_person,
        words=(
            "patient patientin patienten patiente paciente paziente name vorname nachname geburtsname nom "
            "prénom nombre apellido apellidos nome cognome sobrenome họ tên bệnh bn người médecin medecin "
            "medico médico radiologue radiólogo radiologo arzt radiologe untersucher befunder zuweiser "
            "überweiser prescripteur "
            "solicitante bs bác hd madre padre mãe pai"
        ),
    ),
    make_rule(
        "contact",
        r"(?<!\w)(?i:(?:befundet|diktiert|freigegeben|validiert|vidiert|signiert|unterschrieben"
        r"|angefordert|überwiesen|gesehen|besprochen|geschrieben"
        r"|erstellt)\s(?:am\s)?(?:[\ue000\ue001]\s?)?(?:durch|von|mit)"
        r"|gez\.|i\.\s?[av]\.|mfg|mit (?:freundlichen|kollegialen) grüßen|(?:validée?|dictée?|signée?"
        r"|relue?|lue?|interprétée?|rédigée?|adressée?|demandée?|prescrite?"
        r"|vue?)\s(?:\w+\s)?(?:le\s)?(?:[\ue000\ue001]\s?)?par"
        r"|(?:firmado|dictado|informado|validado|revisado|solicitado|remitido|redactado|leído"
        r"|comentado)\s(?:el\s)?(?:[\ue000\ue001]\s?)?(?:por|con)|(?:refertato|firmato|validato|dettato"
        r"|redatto|inviato|richiesto|discusso)\s(?:il\s)?(?:[\ue000\ue001]\s?)?(?:da|dal|dalla|con)"
        r"|(?:laudado|assinado|ditado|liberado|solicitado|encaminhado|revisado"
        r"|discutido)\s(?:em\s)?(?:[\ue000\ue001]\s?)?(?:por|pel[oa]|com)|(?:người|bác s[iĩ])\s(?:đọc|ký"
        r"|kết luận)|firma(?:do)?:|signature|unterschrift|assinatura)\s?:?\s?"
        rf"(?P<who>(?:[\ue000\ue001]|[^\W\d_][\w'\u2019-]{{0,40}}\.?)(?:[\s,]{{1,2}}{PROPER}){{0,5}})",
        flags=EXACT,
        words=(
            "befundet diktiert freigegeben validiert vidiert signiert unterschrieben angefordert "
            "überwiesen gesehen besprochen geschrieben erstellt gez i mfg grüßen validé validée dicté "
            "dictée signé signée relu relue lu lue interprété interprétée rédigé rédigée adressé adressée "
            "demandé demandée prescrit prescrite vu vue firmado dictado informado validado revisado "
            "solicitado remitido redactado leído comentado refertato firmato validato dettato redatto "
            "inviato richiesto discusso laudado assinado ditado liberado encaminhado discutido người bác "
            "firma signature unterschrift assinatura"
        ),
    ),
    make_rule(
        "name",
        rf"(?:患者|病人|病者|姓名|患者姓名|患者名|氏名|受检者)(?:姓名|氏名|名)?\s?[:]?\s?{_NO_HAN_NAME}(?:{_HAN_NAME_IN_TWO}|{_HAN}{{2,4}})(?=[。,.;、\s男女]|様|$)",
        beyond_ascii=True,
    ),
    make_rule(
        "name",
        rf"(?:医师|医生|醫師|醫生|医師|读片者|読影医|読影|(?:検査|检查|放射|撮影)?(?:技师|技師)|签名|署名|审核|審核|报告者|報告者|记录者|承认者|内科主任|主任)"
        rf"\s?[:]\s?(?:{_HAN_NAME_IN_TWO}(?=[。,.;、\s]|様|$)|{_HAN}{{2,4}})"
        rf"|{_HAN}{{1,3}}(?:医师|医生|醫師|醫生|医師|先生|女士|小姐|様|さん|教授)(?!会|\s?:)",
        beyond_ascii=True,
    ),
    make_rule(
        "name",
        rf"(?:{_KANA}{{2,8}})(?:\s?{_KANA}{{2,8}})?\s?(?:様|さん|先生|氏)",
        beyond_ascii=True,
    ),
    make_rule(
        "name",
        rf"(?:환자(?:명|\s?성명)?|성명|이름|판독의|의사|전문의|주치의|검사자|보호자|의뢰의)\s?:\s?{_HANGUL}{{2,4}}|(?:환자"
        rf"|판독의)\s{_HANGUL}{{3}}(?=[\s.,]|$)|{_HANGUL}{{2,4}}\s?(?:선생님|교수|환자분|님|씨)(?!의)"
        rf"|(?<!{_HANGUL}){_HANGUL}{{2,4}}\s(?:의사|전문의|전공의|판독의)(?!{_HANGUL})",
        beyond_ascii=True,
    ),
    # Hospitals and addresses.
    make_rule(
        "place",
        rf"{_HAN}{{2,14}}(?:医院|醫院|病院|诊所|診所|診療所|卫生院|医疗中心|医療センター|クリニック)"
        rf"|{_HANGUL}{{1,16}}(?:\s{_HANGUL}{{2,10}})?(?:병원|의원|의료원|의료센터)",
        beyond_ascii=True,
    ),
    make_rule(
        "place",
        rf"{_HAN}{{2,8}}(?:省|市|县|縣|镇|街道|都|府|県){_HAN}{{0,10}}(?:[区路街村号市町]|\d{{1,5}}号?)?(?:\d{{1,5}}[号號番])?"
        rf"|{_HANGUL}{{1,8}}(?:특별시|광역시|도|시)\s{_HANGUL}{{1,8}}(?:구|군|시)(?:\s{_HANGUL}{{1,8}}\d{{0,3}}(?:로"
        rf"|길|동)(?:\s\d{{1,4}}(?:-\d{{1,4}})?)?)?",
        beyond_ascii=True,
    ),
    make_rule(
        "place",
        r"(?<!\w)(?i:(?:universitäts|kreis|stadt|städt\w{0,6}\s|landes|bezirks)?(?:klinikum|kliniken"
        r"|klinik|krankenhaus|spital|hospital)|universitätsklinikum|praxis|hôpital|chu|chru|ch|centre "
        r"hospitalier(?: universitaire| régional)?|clinique|polyclinique|hospital(?: universitario| "
        r"general| universitário)?|clínica"
        r"|ospedale|policlinico|azienda ospedaliera|casa di cura|istituto|instituto|santa casa|centro "
        r"médico|ambulatorio|centro de salud|bệnh viện|bv|phòng khám|trung tâm y tế)\s(?i:(?:de|del"
        r"|della|di|da|do|dos|la|le|las|los|du|des|der|den|am|im|zu|zum|für|in|universitario|civile|đa "
        r"khoa|trung ương|tỉnh|huyện)\s){0,3}"
        rf"(?:{PROPER}|\d{{1,4}})(?:[\s-](?:(?i:de|la|di|da|do|den|und|et|y|e)\s)?{PROPER}){{0,4}}",
        flags=EXACT,
        needs=(
            "klini,krankenhaus,spital,praxis,hôpital,hopital,chu,ch ,chru,centre hosp,clini,clíni,ospedal,"
            "casa ,istituto,instituto,santa,centro,ambulatorio,bệnh viện,bv,phòng,trung tâm"
        ),
    ),
    make_rule(
        "place",
        r"(?<!\w)[A-ZÄÖÜ][\w.-]{1,40}(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm|ufer"
        r"|steig)\s\d{1,4}\s?[a-z]?\b(?:,?\s\d{5}\s[A-ZÄÖÜ][\w-]{1,40})?"
        r"|(?<!\w)(?:[A-Z]-)?\d{5}\s[A-ZÄÖÜÉ][a-zäöüßéè-]{2,40}(?:\s(?:am|an|de|la)\s[A-Z]\w{1,20})?",
        digits=1,
        starts=DIGITS_AND_CAPITALS,
        flags=EXACT,
    ),
    make_rule(
        "place",
        rf"(?<!\w)\d{{1,4}}(?:\s?(?:bis|ter))?,?\s(?i:rue|avenue|av\.|boulevard|bd|place|chemin|allée"
        rf"|quai|impasse|route|cours)\s(?:(?:de|du|des|de la|de l'|d')\s?)?{PROPER}(?:[\s-](?:de\s|la\s"
        rf"|du\s)?{PROPER}){{0,4}}(?:,\s\d{{5}}\s\w{{2,30}})?",
        digits=1,
        flags=EXACT,
        words="rue avenue av boulevard bd place chemin allée quai impasse route cours",
        starts=DIGITS,
    ),
    make_rule(
        "place",
        rf"(?<!\w)(?i:calle|c/|avenida|avda\.?|av\.|plaza|paseo|carrera|via|viale|piazza|corso|largo"
        rf"|vicolo|rua|travessa|praça|estrada|alameda)\s(?:(?:de|del|di|da|do|dos|della|la"
        rf"|los)\s){{0,2}}{PROPER}(?:\s(?:(?:de|del|di|da|do|e|y)\s)?{PROPER}){{0,4}},"
        rf"?\s(?:n[.º°]*\s?)?\d{{1,5}}",
        digits=1,
        flags=EXACT,
        words=(
            "calle c avenida avda av plaza paseo carrera via viale piazza corso largo vicolo rua travessa "
            "praça estrada alameda"
        ),
    ),
    make_rule(
        "place",
        rf"(?<!\w)(?:số\s\d{{1,4}}[a-z]?(?:/\d{{1,4}})?\s)?(?i:đường|phố|phường|quận|huyện|xã|thôn|tỉnh"
        rf"|thành phố|tp\.?)\s(?:\d{{1,3}}|{CAPITAL}\w{{0,20}}(?:\s{CAPITAL}\w{{0,20}}){{0,3}})",
        flags=EXACT,
        beyond_ascii=True,
    ),
    make_rule(
        "place",
        rf"(?<!\w)(?i:wohnhaft in|wohnt in|aus|réside à|habite à|domiciliée? à|vive en|natural de"
        rf"|residente (?:en|in|em)|reside (?:en|em|a)|vive (?:em|a)|nato a|nata a|mora em|quê ở|sống "
        rf"tại)\s{PROPER}(?:\s{PROPER}){{0,2}}",
        flags=EXACT,
        words=(
            "wohnhaft wohnt aus réside habite domicilié domiciliée vive natural residente reside nato nata "
            "mora quê sống"
        ),
    ),
)
